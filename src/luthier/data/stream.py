"""Steps from rows that are read while training goes on, in windows (`windows.py`).

Each window is shuffled and packed on its own, and its packs are shuffled; a step is the next so many packs, which
may come from two windows. The position is small and exact: the window's place, and the packs taken from it. A run
that goes on from it makes that window again, from its first row, and reads nothing that lies before.

How many steps a number of epochs takes is estimated from the share of the data that was read, better with each
window; a run over whole epochs ends with its last row, whatever was estimated.
"""

import copy
import math
from typing import Any

import numpy as np

from luthier.data import remembered
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
        """The first window that has rows to learn from, without taking anything from it."""
        return first_with_rows(self._windows, self.max_drop_fraction)[0]

    def total_steps(self, epochs: float, steps: int | None) -> int:
        """Steps of a run over so many epochs as estimated from the first window, or the given number.

        Raises:
            DataError: if nothing is known that it could be estimated from.
        """
        if steps is not None:
            return steps
        first = self.first_window()
        packs = len(self.shuffled_packs(first.dataset.lengths, 0, first.place.window)[0])
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
            StopWaiting: the run was asked to stop while it waited. Then, too, nothing is taken: it can be saved.
        """
        assert step == self._step, "a stream gives its steps in order"
        before = dict(vars(self))
        try:
            chosen = self._take()
        except BaseException:
            vars(self).update(before | {"failed": self.failed})
            raise
        self._step += 1
        costs = [float(self.cost.of_rows(window.dataset.lengths[rows]).sum()) for window, rows in chosen]
        batches = []
        for number in self.mine(costs):
            window, rows = chosen[number]
            batches.append(self.batch([window.dataset.example(int(i)) for i in rows]))
        return batches

    def stop_waiting(self) -> None:
        """See `Steps`."""
        self._windows.stop_waiting()

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
            "cleaner": remembered.read(place.memory) if place.memory else None,
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
        place = Place(**state["place"], memory=self._windows.keep_memory(state["cleaner"]))
        self._window = self._before = self._packs = None
        self._next = place
        if state["opened"]:
            self._window = self._windows.open(place, epochs=self.epochs)
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

    def _take(self) -> list[tuple[Window, np.ndarray]]:
        """The packs of the next step: each a window and rows of it."""
        chosen: list[tuple[Window, np.ndarray]] = []
        while len(chosen) < self.packs_per_step and self._has_packs():
            (packs, order), window = self._current(), self._window
            assert window is not None, "there are packs"
            chosen.append((window, packs[int(order[self._taken])]))
            self._taken += 1
        return chosen

    def _has_packs(self) -> bool:
        """Whether there is another pack; opens the next window if need be."""
        while self._window is None or self._taken >= len(self._current()[1]):
            if self.epochs is not None and self._next.epoch >= math.ceil(self.epochs):
                return False
            self._advance()
        return True

    def _advance(self) -> None:
        """Makes the next window the current one, and enters its rows; nothing is changed if that fails."""
        self.failed = True
        window = self._windows.open(self._next, epochs=self.epochs)
        ledger, notes = copy.deepcopy((self.ledger, self.notes))  # `step` may go back to the old ones
        first = window.place.epoch == 0
        if first or not self._windows.same_every_epoch:
            ledger.include(window.dataset.ledger)
            notes.merge(window.notes)
        _check(ledger, window, self.max_drop_fraction)
        self.failed = False
        self.ledger, self.notes = ledger, notes
        self._before, self._window, self._packs, self._taken = self._window, window, None, 0
        self._next, self._news = window.next, True
        if first:
            self._counted += len(self._current()[1])
            self._done = window.done

    def _current(self) -> tuple[Packs, np.ndarray]:
        if self._packs is None:
            assert self._window is not None, "a window is open"
            place = self._window.place
            lengths = self._window.dataset.lengths
            self._packs = self.shuffled_packs(lengths, place.epoch, place.window)
        return self._packs

    def _steps_of(self, packs: float) -> int:
        return max(1, math.ceil(packs / self.packs_per_step - 1e-9))


def first_with_rows(windows: SharedWindows, max_drop_fraction: float) -> tuple[Window, Ledger, Notes]:
    """The first window that has rows to learn from, and the account and the notes of all windows up to it.

    All ranks call it together.

    Raises:
        LuthierError: if a window cannot be made, too many of its rows cannot be used, or no row of any can.
    """
    place, ledger, notes = Place(), Ledger(), Notes()
    while True:
        window = windows.open(place, ahead=False)
        ledger.include(window.dataset.ledger)
        notes.merge(window.notes)
        _check(ledger, window, max_drop_fraction)
        if len(window.dataset) or window.ends_epoch:
            return window, ledger, notes
        place = window.next


def _check(ledger: Ledger, window: Window, max_drop_fraction: float) -> None:
    """Whether to go on behind a window, by the account of all rows so far."""
    if ledger.faults > max_drop_fraction * ledger.read:
        ledger.check(max_drop_fraction)
    if window.ends_epoch and not ledger.usable:
        ledger.check(1.0)
