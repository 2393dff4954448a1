"""Rows in windows of so many, one after another: what streaming reads, tokenises and shuffles at a time.

A window is a folder of arrays like any other (`store.py`), so all processes of a machine map the same one. It says
where the next begins. Making it needs only that place and the files: nothing that lies before is read again.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from luthier.data import cache, remembered
from luthier.data.alone import alone
from luthier.data.notes import Notes
from luthier.data.pipeline import Pipeline, Plan
from luthier.data.prepare import entry_key, write_rows
from luthier.data.sources import Row
from luthier.data.store import TokenDataset
from luthier.data.workers import Handler, Worker, make_encode
from luthier.errors import DataError, LuthierError, StopWaiting

Tell = Callable[[int | str], None]
"""Hears how many rows were read so far, or what goes on while none come."""


@dataclass(frozen=True)
class Place:
    """Where a window begins: enough to make it."""

    epoch: int = 0
    window: int = 0
    position: Any = None
    """The source's; None: the start of the epoch."""
    memory: tuple[str, ...] = ()
    """Files with what cleaning remembers of the rows before, in order."""

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
        """Writes the window at a place as an entry of the cache.

        Raises:
            DataError: if the rows cannot be read, or the window cannot be written.
        """
        if self._expected != place or place.position is None:  # else everything stands there already
            self._rows, self._ahead = self._source.rows(place.epoch, place.position), None
            # the first rows of all are looked at closely; what is wrong later ends in the ledger
            self._pipeline = Pipeline(self.plan, self._encode, check_files=place == Place())
            if self._pipeline.cleaner is not None and place.memory:
                self._pipeline.cleaner.restore([remembered.read(place.memory)])
        self._expected = None
        self._source.signs.tell = tell
        try:
            with alone(entry, tell):
                if not self._source.is_stream and cache.load(entry) is not None:
                    return  # another process has made it meanwhile
                facts: dict[str, Any] = {}
                with cache.new_entry(entry, facts) as folder:
                    following = self._fill(place, folder, facts, tell)
        except OSError as fault:
            raise DataError(
                f"the tokens of a window of rows cannot be written to {entry.parent}: {fault.strerror or fault}. "
                "Make room there, or lower data.window_rows"
            ) from fault
        self._expected = _with_memory(following, place, entry)

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
            position = json.loads(json.dumps(positions[0]))  # as it will be read back
            following = Place(place.epoch, place.window + 1, position)
            done = self._source.progress(positions[0])
        if cleaner is not None:
            remembered.write(folder, cleaner.news())
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
        tell: while somebody waits for rows, hears how many are read, or what goes on while none come.
    """

    def __init__(
        self,
        plan: Plan,
        num_rows: int,
        folder: Path,
        *,
        keep: bool,
        workers: int = 0,
        tell: Tell = lambda value: None,
    ):
        self.plan, self.num_rows, self.folder, self.keep, self._tell = plan, num_rows, folder, keep, tell
        self.key = f"{entry_key(plan, plan.open(), whole=False)}-{num_rows}"
        self._workers = workers if os.name == "posix" else 0
        self._worker: Worker | None = None
        self._maker: WindowMaker | None = None
        self._asked: Place | None = None
        self._opened: dict[Path, tuple[int, int]] = {}  # and the number of the epoch and the window
        self._memory: str | None = None
        self._may_end = False  # a window is being opened, which a signal may end

    def entry(self, place: Place) -> Path:
        """The folder of a window."""
        epoch = 0 if self.plan.same_every_epoch else place.epoch
        return self.folder / self.key / f"{epoch}-{place.window}"

    def open(self, place: Place, *, ahead: bool = True, epochs: float | None = None) -> Path:
        """The folder of the window at a place, made if need be.

        `ahead` says that it is read now: the one behind it is begun, unless so many epochs end there, and those
        before it may go.

        Raises:
            LuthierError: if it cannot be made.
            StopWaiting: `stop_waiting` was called meanwhile.
        """
        self._may_end = True
        try:
            return self._open(place, ahead, math.inf if epochs is None else epochs)
        finally:
            self._may_end = False

    def stop_waiting(self) -> None:
        """Ends `open`, if this thread is in it, by raising `StopWaiting`: for the handler of a signal."""
        if self._may_end:
            self._may_end = False
            raise StopWaiting

    def _open(self, place: Place, ahead: bool, epochs: float) -> Path:
        entry = self.entry(place)
        if self._asked == place:
            self._wait()
        found = open_window(entry, place)
        if found is None:
            self._make(place)
            found = open_window(entry, place)
        if found is None:
            raise DataError(f"the window of rows in {entry} cannot be read back; the disk may be damaged")
        self._opened[entry] = place.epoch, place.window
        if ahead and not self.keep:
            self._remove_before(place)
        wanted = ahead and found.next.epoch < epochs
        if wanted and self._workers and not cache.is_there(self.entry(found.next)):
            self._ask(found.next)
        return entry

    def keep_memory(self, part: bytes) -> str:
        """Writes down what cleaning remembered at a place, from a checkpoint; returns the file for `Place.memory`."""
        self._memory = remembered.keep(self.folder / self.key, part)
        return self._memory

    def close(self) -> None:
        """Ends the processes, and removes what is not kept."""
        if self._memory is not None:
            Path(self._memory).unlink(missing_ok=True)
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

    def _remove_before(self, place: Place) -> None:
        """Windows that nobody reads any more: those before this one, but for the last of them."""
        before = [one for one, number in self._opened.items() if number < (place.epoch, place.window)]
        for old in sorted(before, key=self._opened.__getitem__)[:-1]:
            remembered.remove_rows(old)
            del self._opened[old]


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

    def open(self, place: Place, *, ahead: bool = True, epochs: float | None = None) -> Window:
        """The window at a place. Every rank calls it, and learns of a failure on any. See `Windows.open`.

        Raises:
            LuthierError: if it cannot be made.
            StopWaiting: a rank that makes windows was asked to stop meanwhile.
        """
        outcome: Path | LuthierError | StopWaiting | None = None
        if self.windows is not None:
            try:
                outcome = self.windows.open(place, ahead=ahead, epochs=epochs)
            except (LuthierError, StopWaiting) as error:
                outcome = error
        outcomes = self.gather(outcome)
        for error in outcomes:
            if isinstance(error, (LuthierError, StopWaiting)):
                raise error
        window = open_window(outcomes[self.maker], place)
        if window is None:
            raise DataError(
                f"the window of rows in {outcomes[self.maker]} cannot be read by another process of this run"
            )
        return window

    def keep_memory(self, part: bytes | None) -> tuple[str, ...]:
        """`Place.memory` at a place where, as a checkpoint says, cleaning remembered this. Every rank calls it."""
        if part is None:
            return ()
        own = self.windows.keep_memory(part) if self.windows is not None else ""
        return (self.gather(own)[self.maker],)

    def stop_waiting(self) -> None:
        """Ends a wait of this rank for a window: for the handler of a signal."""
        if self.windows is not None:
            self.windows.stop_waiting()

    def close(self) -> None:
        """Ends what works ahead."""
        if self.windows is not None:
            self.windows.close()


def _with_memory(following: Place, place: Place, entry: Path) -> Place:
    """The place behind a window, which goes on with what cleaning remembers, unless an epoch begins there."""
    files = remembered.files_behind(place.memory, entry) if following.window else ()
    return replace(following, memory=files)


def open_window(entry: Path, place: Place) -> Window | None:
    """A window that was made, mapped from disk; None if it is not there or not whole."""
    found = cache.load(entry)
    if found is None:
        return None
    arrays, facts = found
    following = Place(**facts["next"])
    # an entry that epochs share was made in one of them; only the last window's successor is the first of an epoch
    following = replace(following, epoch=place.epoch + (following.window == 0))
    following = _with_memory(following, place, entry)
    notes = Notes.from_json(facts["notes"])
    return Window(place, TokenDataset(arrays, facts), following, facts["done"], notes)
