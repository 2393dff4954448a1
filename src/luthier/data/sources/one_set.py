"""The rows of one data set in order: its files one after the other, a part or a sample of them, and repeats."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import Any, NamedTuple

from luthier.data.mix import Draws, Phases, times
from luthier.data.sources.files import DataFile, StreamFile
from luthier.data.sources.read import count_rows, read_file
from luthier.data.sources.row import START, Mark
from luthier.data.sources.signs import EVERY_ROWS, Signs
from luthier.data.sources.splits import Slice
from luthier.errors import DataError

_SAMPLE, _REPEAT = 1, 2


class Cursor(NamedTuple):
    """Where in a set the next row begins."""

    turn: int = 0
    """How often all files have been read in this epoch."""
    file: int = 0
    at: int = 0
    inside: int = 0
    line: int = 0
    """`at`, `inside` and `line` as in `Mark`."""
    seen: int = 0
    """Rows that were read in this turn, of all files."""
    taken: int = 0
    """Of those, the rows that belong to the sample."""


SetRow = tuple[str, int, dict[str, Any] | None, str | None, Cursor]
"""File, line, record or fault, and the cursor behind the row."""
_new = tuple.__new__  # a fifth of the time of calling the class, for each row


@dataclass(frozen=True)
class RowSet:
    """One data set of a source. Its rows are the same for the same files and seed."""

    files: Sequence[DataFile]
    where: str
    """What it is called in messages."""
    part: Slice | None = None
    rows: int | None = None
    weight: float = 1.0
    repeat: float = 1.0
    key: tuple[int, ...] = (0, 0)
    """Seed of the run and number of the set: what random choices depend on."""
    signs: Signs = field(default_factory=Signs, compare=False)
    """Hears what goes on while no rows come."""

    @property
    def is_stream(self) -> bool:
        """Whether the rows come once, from a pipe."""
        return any(isinstance(file, StreamFile) for file in self.files)

    @property
    def is_plain(self) -> bool:
        """Whether every row of the files comes a whole number of times."""
        return self.part is None and self.rows is None and self.repeat == int(self.repeat)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many rows each file has. Counting reads text files once.

        Raises:
            DataError: if the set is a stream, or a file cannot be read.
        """
        if self.is_stream:
            raise DataError(
                f"{self.where} is a stream, so how many rows it has is not known; save it as a file, "
                "or say how many to use with `rows`"
            )
        return tuple(count_rows(file, self.signs) for file in self.files)

    @cached_property
    def window(self) -> tuple[int, int | None]:
        """The first row and the end of the part that is used; no end: all.

        Of a stream it is the first `rows`: which others will come is not known.
        """
        if self.is_stream:
            return 0, self.rows
        if self.part is None:
            return 0, None
        part = self.part
        window = part.window(sum(self.counts)) if part.needs_count else (part.start, part.end)
        if window[1] is not None and window[0] >= window[1]:
            raise DataError(
                f"{self.where}: the split's part has no rows: it goes from {window[0]} to {window[1]}"
            )
        return window

    @cached_property
    def num_available(self) -> int:
        """Rows of the part, before a sample is drawn. Raises DataError as `counts` does."""
        start, end = self.window
        if self.is_stream and end is not None:
            return end
        total = sum(self.counts)
        return max(0, min(total, total if end is None else end) - start)

    @property
    def rows_per_epoch(self) -> float:
        """Rows that the set gives an epoch, about. Raises DataError as `counts` does."""
        return min(self.num_available, self.rows or self.num_available) * self.repeat

    def read(self, epoch: int, start: Cursor) -> Iterator[SetRow]:
        """The rows of an epoch from a cursor on. Raises DataError if a file cannot be read."""
        first_turn, first_file, at, inside, line, seen, taken = start
        mark, end = Mark(at, inside, line), self.window[1]
        for turn in range(first_turn, ceil(self.repeat)):
            choose = None if self.is_plain else _Choice(self, epoch, turn, taken)
            for number in range(first_file, len(self.files)):
                if end is not None and seen >= end:
                    break
                file = self.files[number]
                name = file.name
                for place, record, fault, at, inside, line in read_file(file, mark, self.signs):
                    seen += 1
                    if seen % EVERY_ROWS == 0:
                        self.signs.tell(f"{name}: row {seen:,}")
                    if choose is None or choose(seen - 1):
                        taken = choose.taken if choose is not None else 0
                        cursor = _new(Cursor, (turn, number, at, inside, line, seen, taken))
                        yield name, place, record, fault, cursor
                    if seen == end:
                        break
                mark = START
            if seen <= self.window[0] > 0:
                raise DataError(
                    f"{self.where}: the split's part begins at row {self.window[0]}, but there are {seen}"
                )
            mark, first_file, seen, taken = START, 0, 0, 0


class _Choice:
    """Whether the row with a number comes in this turn. `taken`: rows of the sample met so far."""

    def __init__(self, of: RowSet, epoch: int, turn: int, taken: int):
        self.taken = taken
        self._first = of.window[0]
        self._repeat, self._epoch, self._turn = of.repeat, epoch, turn
        self._phases = None if of.repeat == int(of.repeat) else Phases(*of.key, _REPEAT)
        self._wanted = None if of.is_stream else of.rows
        self._available = of.num_available if self._wanted is not None else 0
        self._draws = Draws(*of.key, _SAMPLE)

    def __call__(self, number: int) -> bool:
        number -= self._first
        if number < 0:
            return False
        if self._wanted is not None:
            # Of those that are left, each is as likely as any other to be one of those that are missing.
            if self._draws(number) * (self._available - number) >= self._wanted - self.taken:
                return False
            self.taken += 1
        return self._phases is None or times(self._phases(number), self._repeat, self._epoch) > self._turn
