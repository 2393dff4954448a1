"""Several data sets as one row of rows, one after the other or interleaved, that can be opened anywhere."""

from collections.abc import Iterator, Sequence
from typing import Any

from luthier.config.data_section import SetSection
from luthier.data.mix import SetDraws, shares
from luthier.data.sources.files import DataFile
from luthier.data.sources.find import find_files
from luthier.data.sources.one_set import Cursor, RowSet
from luthier.data.sources.progress import progress_of
from luthier.data.sources.row import Row
from luthier.data.sources.signs import Signs
from luthier.data.sources.splits import parse_split
from luthier.errors import DataError

Position = Any
"""Where the next row begins, in plain lists and numbers: it can be written as JSON. Treat it as opaque."""

_MIX = 3
_new = tuple.__new__  # a third of the time of calling the class, for each row


class Source:
    """Rows of data sets, in an order that depends on the files, the settings, the seed and the epoch alone."""

    def __init__(
        self,
        sets: Sequence[RowSet],
        mix: str = "concat",
        temperature: float = 1.0,
        seed: int = 0,
        notes: Sequence[str] = (),
        signs: Signs | None = None,
    ):
        self.sets = tuple(sets)
        self.mix, self.temperature, self.seed = mix, temperature, seed
        self.notes = tuple(notes)
        """What a person should be told once: files that are not read."""
        self.signs = signs or Signs()
        """Hears what goes on while no rows come."""

    @property
    def data_files(self) -> tuple[DataFile, ...]:
        """Every file once, in the order in which they are read first."""
        return tuple({file.name: file for one in self.sets for file in one.files}.values())

    @property
    def files(self) -> list[str]:
        """The names of the files: local paths, or names with a scheme."""
        return [file.name for file in self.data_files]

    @property
    def size(self) -> int | None:
        """Bytes of all files as they lie there; None if that of one is not known."""
        sizes = [file.size for file in self.data_files]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def is_stream(self) -> bool:
        """Whether some rows come from a pipe, and so only once."""
        return any(one.is_stream for one in self.sets)

    @property
    def is_local(self) -> bool:
        """Whether all files lie on this machine's disk, or in its cache of the hub, already."""
        return all(file.is_here for file in self.data_files)

    def rows(self, epoch: int = 0, start: Position | None = None) -> Iterator[tuple[Row, Position]]:
        """The rows of an epoch, each with the position behind it. From a `start`, what lies before is not read.

        Raises:
            DataError: if a file cannot be read, or the position is not one of these files.
        """
        if self.mix == "concat":
            return self._one_after_the_other(epoch, start)
        return self._interleaved(epoch, start)

    def progress(self, position: Position) -> float | None:
        """About which share of an epoch lies before a position; None where that cannot be told (a stream).

        It is reckoned by bytes (rows of table files), so that nothing has to be counted. In an interleaved mix
        it is reckoned by rows.
        """
        return progress_of(self, position)

    def _one_after_the_other(self, epoch: int, start: Position | None) -> Iterator[tuple[Row, Position]]:
        number, first, *cursor = start or (0, 0)
        self._check(first, Cursor(*cursor))
        for index in range(first, len(self.sets)):
            for file, line, record, fault, behind in self.sets[index].read(epoch, Cursor(*cursor)):
                row = _new(Row, (number, file, line, record, fault, index))
                number += 1
                yield row, (number, index, *behind)
            cursor = []

    def _interleaved(self, epoch: int, start: Position | None) -> Iterator[tuple[Row, Position]]:
        number, draw, given = start or (0, 0, [(0, ())] * len(self.sets))
        states = [(rounds, Cursor(*cursor)) for rounds, cursor in given]
        self._check(len(states) - 1, *(cursor for _, cursor in states))
        opened = [one.read(epoch, cursor) for one, (_, cursor) in zip(self.sets, states, strict=True)]
        choose = SetDraws(self.shares, self.seed, _MIX, epoch)
        while True:
            index = choose(draw)
            draw += 1
            row = next(opened[index], None)
            if row is None:
                rounds = states[index][0] + 1
                states[index] = (rounds, Cursor())
                if self.mix == "first_exhausted" or all(rounds for rounds, _ in states):
                    return
                opened[index] = self.sets[index].read(epoch, Cursor())
                row = next(opened[index], None)
                if row is None:
                    continue  # nothing of the set comes this epoch
            file, line, record, fault, behind = row
            states[index] = (states[index][0], behind)
            yield _new(Row, (number, file, line, record, fault, index)), (number + 1, draw, tuple(states))
            number += 1

    def _check(self, index: int, *cursors: Cursor) -> None:
        """Refuses a position of other files."""
        sets = self.sets[index : index + 1] if self.mix == "concat" else self.sets
        fits = index < len(self.sets) and len(sets) == len(cursors)
        if not fits or any(cursor.file >= len(one.files) for one, cursor in zip(sets, cursors, strict=True)):
            raise DataError("the position to read on from belongs to other data; start anew")

    @property
    def shares(self) -> list[float]:
        """The share of each set in an interleaved mix. Raises DataError if one is a stream without `rows`."""
        sizes = [max(one.rows_per_epoch, 1.0) for one in self.sets]
        return shares(sizes, [one.weight for one in self.sets], self.temperature)


def open_source(
    sets: Sequence[SetSection],
    *,
    mix: str = "concat",
    temperature: float = 1.0,
    seed: int = 0,
    offline: bool = False,
    role: str = "data.path",
) -> Source:
    """The source of some data sets. Their files are looked for now and read later.

    `mix` and `temperature` are those of the section `data`; `role` is where the sets are written, for messages.

    Raises:
        DataError: if a file or a set is not there, or cannot be of use.
    """
    made: list[RowSet] = []
    signs = Signs()
    notes: list[str] = []
    for index, one in enumerate(sets):
        name, part = parse_split(one.split, f"{role}: {one.path}") if one.split else (None, None)
        found = find_files(one.path, name, one.subset, offline)
        notes += found.notes
        made.append(
            RowSet(found.files, one.path, part, one.rows, one.weight, one.repeat, (seed, index), signs)
        )
    if mix == "concat" and any(one.weight != 1 for one in sets):
        notes.append("data.mix is concat, so the weights of the sets have no effect")
    if not made:
        raise DataError(f"{role} names no data")
    return Source(made, mix, temperature, seed, notes, signs)
