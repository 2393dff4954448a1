"""Steps from rows that are read while training goes on, in windows (`windows.py`).

Each window is shuffled and packed on its own, and its packs are shuffled; a step is the next so many packs, which
may come from two windows. The position is small and exact: the window's place, and the packs taken from it. A run
that goes on from it makes that window again, from its first row, and reads nothing that lies before.

How many steps a number of epochs takes is estimated from the share of the data that was read, better with each
window; a run over whole epochs ends with its last row, whatever was estimated.
"""

import math
from typing import Any

import numpy as np

from luthier.data.batch import Batch
from luthier.data.ledger import Ledger
from luthier.data.loader import Steps
from luthier.data.notes import Notes
from luthier.data.pack import Packs
from luthier.data.windows import Place, SharedWindows, Window
from luthier.errors import DataError


class StreamSource(Steps):
    """Yields, for each optimizer step, this rank's micro-batches.

    Args:
        windows: the rows. All ranks open them at the same steps.
        epochs: passes over the rows; the source ends after so many. None: it never does.
        max_drop_fraction: share of the rows read so far that may be unusable.
        options: see `Steps`.
    """

    def __init__(
        self,
        windows: SharedWindows,
        *,
        epochs: float | None = None,
        max_drop_fraction: float = 0.01,
        **options: Any,
    ):
        super().__init__(**options)
        self._windows = windows
        self.epochs, self.max_drop_fraction = epochs, max_drop_fraction
        self.ledger, self.notes = Ledger(), Notes()
        """What became of the rows so far, each counted in its first epoch, and what there is to say about them."""
        self._next = Place()  # of the window behind the current one
        self._window: Window | None = None
        self._before: Window | None = None
        self._packs: tuple[Packs, np.ndarray] | None = None
        self._taken = 0  # packs of the current window
        self._step = 0
        self._news = False
        self._counted = 0  # packs of windows that were opened in the first epoch
        self._done: float | None = 0.0  # share of the epoch that these are

    def first_window(self) -> Window:
        """The first window, without taking anything from it."""
        return self._windows.open(Place(), ahead=False)

    def total_steps(self, epochs: float, steps: int | None) -> int:
        """Steps of a run over so many epochs as estimated from the first window, or the given number.

        Raises:
            DataError: if nothing is known that it could be estimated from.
        """
        if steps is not None:
            return steps
        first = self.first_window()
        packs = len(self.shuffled_packs(first.dataset.lengths, 0, 0)[0])
        if first.done is None:
            raise DataError(
                "how long an epoch is cannot be known before it is read, so train.epochs cannot be turned into a "
                "number of steps; give train.steps"
            )
        return self._steps_of(epochs * packs / max(first.done, 1e-9))

    def ready(self, total_steps: int) -> int:
        """How many steps the run has, as known before the next one; all rows of whole epochs are in them.

        Opens the next window if the current one is used up. Without `epochs` it is the given number.
        """
        if self.epochs is None:
            return total_steps
        if not self._has_packs():
            return self._step
        done = self._done
        if done is None:
            return total_steps
        total = self._steps_of(self.epochs * self._counted / max(done, 1e-9))
        if self.epochs != int(self.epochs):
            return max(total, self._step)
        assert self._window is not None, "there are packs"
        last = self._window.ends_epoch and self._next.epoch >= self.epochs
        left = self._steps_of(len(self._current()[1]) - self._taken)
        return self._step + left if last else max(total, self._step + left)

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of the next step that fall to this rank; possibly none. Steps cannot be chosen.

        Raises:
            LuthierError: if rows cannot be read, or too many of them cannot be used.
        """
        assert step == self._step, "a stream gives its steps in order"
        chosen: list[tuple[Window, np.ndarray]] = []
        while len(chosen) < self.packs_per_step and self._has_packs():
            (packs, order), window = self._current(), self._window
            assert window is not None, "there are packs"
            chosen.append((window, packs[int(order[self._taken])]))
            self._taken += 1
        self._step += 1
        costs = [float(self.cost.of_rows(window.dataset.lengths[rows]).sum()) for window, rows in chosen]
        batches = []
        for number in self.mine(costs):
            window, rows = chosen[number]
            batches.append(self.batch([window.dataset.example(int(i)) for i in rows]))
        return batches

    def took_window(self) -> bool:
        """Whether a window was opened since the last call."""
        took, self._news = self._news, False
        return took

    def locate(self, row: int) -> str:
        """Where a row of the last steps was read."""
        for window in (self._window, self._before):
            if window is not None and window.dataset.holds(row):
                return window.dataset.locate(row)
        return f"row {row}"

    def state(self) -> dict[str, Any]:
        """All that is needed to go on from here, as plain values."""
        place = self._window.place if self._window is not None else self._next
        return {
            "place": place.to_json(),
            "cleaner": place.cleaner,
            "opened": self._window is not None,
            "taken": self._taken,
            "step": self._step,
            "counted": self._counted,
            "done": self._done,
            "ledger": self.ledger.to_json(),
            "notes": self.notes.to_json(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from where `state` was taken. Every rank calls it."""
        place = Place(**state["place"], cleaner=state["cleaner"])
        self._window = self._before = self._packs = None
        self._next = place
        if state["opened"]:
            self._window = self._windows.open(place)
            self._next = self._window.next
        self._taken, self._step = state["taken"], state["step"]
        self._counted, self._done = state["counted"], state["done"]
        self.ledger, self.notes = Ledger.from_json(state["ledger"]), Notes.from_json(state["notes"])

    def begin_at(self, step: int) -> None:
        """Gives the first rows to this step. Only a run of so many steps, not of epochs, can begin elsewhere."""
        assert self.epochs is None, "how many steps epochs take is counted from the first"
        self._step = step

    def close(self) -> None:
        """Ends what works ahead."""
        self._window = self._before = self._packs = None
        self._windows.close()

    def _has_packs(self) -> bool:
        """Whether there is another pack; opens the next window if need be."""
        while self._window is None or self._taken >= len(self._current()[1]):
            if self.epochs is not None and self._next.epoch >= math.ceil(self.epochs):
                return False
            self._advance()
        return True

    def _advance(self) -> None:
        """Makes the next window the current one, and enters its rows."""
        window = self._windows.open(self._next)
        self._before, self._window, self._packs, self._taken = self._window, window, None, 0
        self._next, self._news = window.next, True
        if window.place.epoch == 0 or not self._windows.same_every_epoch:
            self.ledger.include(window.dataset.ledger)
            self.notes.merge(window.notes)
        if window.place.epoch == 0:
            self._counted += len(self._current()[1])
            self._done = window.done
        if self.ledger.faults > self.max_drop_fraction * self.ledger.read:
            self.ledger.check(self.max_drop_fraction)
        if window.ends_epoch and not self.ledger.usable:
            self.ledger.check(1.0)

    def _current(self) -> tuple[Packs, np.ndarray]:
        if self._packs is None:
            assert self._window is not None, "a window is open"
            place = self._window.place
            lengths = self._window.dataset.lengths
            self._packs = self.shuffled_packs(lengths, place.epoch, place.window)
        return self._packs

    def _steps_of(self, packs: float) -> int:
        return max(1, math.ceil(packs / self.packs_per_step - 1e-9))
