"""Rows in windows of so many, one after another: what streaming reads, tokenises and shuffles at a time.

A window is a folder of arrays like any other (`store.py`), so all processes of a machine map the same one. It says
where the next begins. Making it needs only that place and the files: nothing that lies before is read again.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data import cache
from luthier.data.notes import Notes
from luthier.data.pipeline import Pipeline, Plan
from luthier.data.prepare import entry_key, write_rows
from luthier.data.sources import Row
from luthier.data.store import TokenDataset
from luthier.data.workers import Handler, Worker, make_encode
from luthier.errors import DataError, LuthierError

Tell = Callable[[Any], None]
_CLEANER = "cleaner"


@dataclass(frozen=True)
class Place:
    """Where a window begins: enough to make it."""

    epoch: int = 0
    window: int = 0
    position: Any = None
    """The source's; None: the start of the epoch."""
    cleaner: bytes | None = None
    """What cleaning remembers of the rows before; None: nothing."""

    def to_json(self) -> dict[str, Any]:
        """All but what cleaning remembers, as plain JSON values."""
        return {"epoch": self.epoch, "window": self.window, "position": self.position}


@dataclass(frozen=True)
class Window:
    """A window that was made."""

    place: Place
    dataset: TokenDataset
    next: Place
    done: float | None
    """Share of the epoch's bytes that are read when this window ends; None: not known."""
    notes: Notes
    """What a person should be told about its rows."""

    @property
    def ends_epoch(self) -> bool:
        """Whether it is the last one of its epoch."""
        return self.next.epoch > self.place.epoch


class WindowMaker:
    """Reads and tokenises windows.

    Args:
        plan: which rows, and what becomes of them.
        num_rows: rows of a window.
        workers: processes that tokenise; 0: this one.
    """

    def __init__(self, plan: Plan, num_rows: int, workers: int = 0):
        assert plan.recipe is not None, "tokens need a recipe"
        self.plan, self.num_rows = plan, num_rows
        self._source = plan.open()
        self._encode, self.close = make_encode(plan.recipe, workers)
        self._rows: Iterator[tuple[Row, Any]] = iter(())
        self._ahead: tuple[Row, Any] | None = None
        self._pipeline = Pipeline(plan, self._encode, check_files=False)
        self._expected: Place | None = None

    def make(self, place: Place, entry: Path, tell: Tell = lambda value: None) -> None:
        """Writes the window at a place as an entry of the cache. `tell` hears the rows read so far.

        Raises:
            DataError: if the rows cannot be read, or the window cannot be written.
        """
        if self._expected != place or place.position is None:  # else everything stands there already
            self._rows, self._ahead = self._source.rows(place.epoch, place.position), None
            # the first rows of all are looked at closely; what is wrong later ends in the ledger
            self._pipeline = Pipeline(self.plan, self._encode, check_files=place == Place())
            if self._pipeline.cleaner is not None and place.cleaner is not None:
                self._pipeline.cleaner.restore(place.cleaner)
        self._expected = None
        try:
            facts: dict[str, Any] = {}
            with cache.new_entry(entry, facts) as folder:
                following = self._fill(place, folder, facts, tell)
        except OSError as fault:
            raise DataError(
                f"the tokens of a window of rows cannot be written to {entry.parent}: {fault.strerror or fault}. "
                "Make room there, or lower data.window_rows"
            ) from fault
        self._expected = following

    def _fill(self, place: Place, folder: Path, facts: dict[str, Any], tell: Tell) -> Place:
        pipeline, cleaner = self._pipeline, self._pipeline.cleaner
        positions: list[Any] = [place.position]

        def rows() -> Iterator[Row]:
            for number, (row, position) in enumerate(self._taken(), start=1):
                positions[0] = position
                yield row
                if number % 1024 == 0:
                    tell(number)

        found, ledger = write_rows(pipeline.prepared(rows()), folder, self.plan)
        pipeline.check_files = False
        if ledger.read == 0:
            raise DataError(f"{self.plan.role}: there are no rows to read")
        self._ahead = next(self._rows, None)
        if self._ahead is None:
            following, done = Place(place.epoch + 1), 1.0
        else:
            memory = cleaner.state() if cleaner is not None else None
            position = json.loads(json.dumps(positions[0]))  # as it will be read back
            following = Place(place.epoch, place.window + 1, position, memory)
            done = self._source.progress(positions[0])
        if following.cleaner is not None:
            np.save(folder / f"{_CLEANER}.npy", np.frombuffer(following.cleaner, np.uint8))
        notes = pipeline.take_notes()
        for told in cleaner.notes if cleaner is not None else []:
            notes.add(told, f"in window {place.window + 1}")
        facts |= {
            **found,
            "notes": notes.to_json(),
            "next": following.to_json(),
            "done": done,
        }
        return following

    def _taken(self) -> Iterator[tuple[Row, Any]]:
        """The rows of one window."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            yield ahead
        yield from islice(self._rows, self.num_rows - (ahead is not None))


def make_handler(plan: Plan, num_rows: int, workers: int) -> Handler:
    """What a process that makes windows does."""
    maker = WindowMaker(plan, num_rows, workers)

    def handle(request: tuple[Place, Path], tell: Tell) -> None:
        maker.make(*request, tell)

    return handle


class Windows:
    """The windows of a plan, made when they are asked for, the next one ahead of time in another process.

    Args:
        plan: which rows, and what becomes of them.
        num_rows: rows of a window.
        folder: where windows are kept.
        keep: leave them there for the next epoch and the next run; else each is removed after the one behind it.
        workers: processes that work ahead; 0: none, windows are made here when they are needed.
        tell: hears the number of rows read while somebody waits for them.
    """

    def __init__(
        self,
        plan: Plan,
        num_rows: int,
        folder: Path,
        *,
        keep: bool,
        workers: int = 0,
        tell: Callable[[int], None] = lambda rows: None,
    ):
        self.plan, self.num_rows, self.folder, self.keep, self._tell = plan, num_rows, folder, keep, tell
        self.key = f"{entry_key(plan, plan.open(), whole=False)}-{num_rows}"
        self._workers = workers if os.name == "posix" else 0
        self._worker: Worker | None = None
        self._maker: WindowMaker | None = None
        self._asked: Place | None = None
        self._opened: list[Path] = []

    def entry(self, place: Place) -> Path:
        """The folder of a window."""
        epoch = 0 if self.plan.same_every_epoch else place.epoch
        return self.folder / self.key / f"{epoch}-{place.window}"

    def open(self, place: Place, *, ahead: bool = True) -> Path:
        """The folder of the window at a place, made if need be. `ahead` starts making the one behind it.

        Raises:
            LuthierError: if it cannot be made.
        """
        entry = self.entry(place)
        if self._asked == place:
            self._wait()
        found = open_window(entry, place)
        if found is None:
            self._make(place)
            found = open_window(entry, place)
        if found is None:
            raise DataError(f"the window of rows in {entry} cannot be read back; the disk may be damaged")
        self._remove_old(entry)
        if ahead and self._workers and not self.entry(found.next).exists():
            self._ask(found.next)
        return entry

    def close(self) -> None:
        """Ends the processes, and removes what is not kept."""
        if self._worker is not None:
            self._worker.close()
            cache.remove_partials(self.folder / self.key, self._worker.process.pid)
        if self._maker is not None:
            self._maker.close()
        self._worker = self._maker = self._asked = None
        if not self.keep:
            shutil.rmtree(self.folder / self.key, ignore_errors=True)

    def _make(self, place: Place) -> None:
        if self._workers:
            self._ask(place)
            self._wait()
            return
        if self._maker is None:
            self._maker = WindowMaker(self.plan, self.num_rows)
        self._maker.make(place, self.entry(place), self._tell)

    def _ask(self, place: Place) -> None:
        if self._asked is not None:
            self._wait()
        if self._worker is None:
            encoders = self._workers if self._workers > 1 else 0
            self._worker = Worker(make_handler, self.plan, self.num_rows, encoders)
            self._worker.answer()
        self._worker.request((place, self.entry(place)), f"{self.plan.role}, window {place.window + 1}")
        self._asked = place

    def _wait(self) -> None:
        assert self._worker is not None, "somebody was asked"
        self._asked = None
        self._worker.answer(self._tell)

    def _remove_old(self, entry: Path) -> None:
        """Windows that nobody reads any more: those before the last two."""
        if self.keep:
            return
        self._opened = [*(one for one in self._opened if one != entry), entry]
        for old in self._opened[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        self._opened = self._opened[-2:]


@dataclass(frozen=True)
class SharedWindows:
    """The windows as all processes of a run see them: made once on each machine.

    Args:
        windows: makes them; None on ranks that another one on their machine makes them for.
        maker: the rank that makes this rank's windows.
        gather: shows every rank what each has (`Cluster.gather`).
        same_every_epoch: every epoch has the same rows in the same order.
    """

    windows: Windows | None
    maker: int = 0
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    same_every_epoch: bool = True

    def open(self, place: Place, *, ahead: bool = True) -> Window:
        """The window at a place. Every rank calls it, and learns of a failure on any.

        Raises:
            LuthierError: if it cannot be made.
        """
        outcome: Path | LuthierError | None = None
        if self.windows is not None:
            try:
                outcome = self.windows.open(place, ahead=ahead)
            except LuthierError as error:
                outcome = error
        outcomes = self.gather(outcome)
        for error in outcomes:
            if isinstance(error, LuthierError):
                raise error
        window = open_window(outcomes[self.maker], place)
        if window is None:
            raise DataError(
                f"the window of rows in {outcomes[self.maker]} cannot be read by another process of this run"
            )
        return window

    def close(self) -> None:
        """Ends what works ahead."""
        if self.windows is not None:
            self.windows.close()


def open_window(entry: Path, place: Place) -> Window | None:
    """A window that was made, mapped from disk; None if it is not there or not whole."""
    found = cache.load(entry)
    if found is None:
        return None
    arrays, facts = found
    following = Place(**facts["next"])
    if _CLEANER in arrays:
        following = replace(following, cleaner=arrays[_CLEANER].tobytes())
    # an entry that epochs share was made in one of them; only the last window's successor is the first of an epoch
    following = replace(following, epoch=place.epoch + (following.window == 0))
    notes = Notes.from_json(facts["notes"])
    return Window(place, TokenDataset(arrays, facts), following, facts["done"], notes)
