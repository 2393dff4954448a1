"""About how much of a source lies before a position, without counting its rows."""

from typing import TYPE_CHECKING, Any

from luthier.data.sources import tables
from luthier.data.sources.files import DataFile, expansion
from luthier.data.sources.one_set import Cursor, RowSet

if TYPE_CHECKING:
    from luthier.data.sources.source import Source


def progress_of(source: "Source", position: Any) -> float | None:
    """The share of the epoch before a position, in [0, 1]; None if the source has a stream or an unknown size."""
    if source.size is None:
        return None
    if source.mix != "concat":
        return min(1.0, position[0] / max(1.0, _mixed_rows(source)))
    sizes = [sum(file.size or 0 for file in one.files) * one.repeat for one in source.sets]
    index, cursor = position[1], Cursor(*position[2:])
    done = sum(sizes[:index]) + sizes[index] * _of_set(source.sets[index], cursor)
    return min(1.0, done / max(1.0, sum(sizes)))


def _mixed_rows(source: "Source") -> float:
    """Rows until the first or the last set is used up, when each comes as often as its share says."""
    rows = [one.rows_per_epoch / share for one, share in zip(source.sets, source.shares, strict=True)]
    return min(rows) if source.mix == "first_exhausted" else max(rows)


def _of_set(one: RowSet, cursor: Cursor) -> float:
    """The share of a set before a cursor, all its turns together."""
    sizes = [file.size or 0 for file in one.files]
    inside = sizes[cursor.file] * _of_file(one.files[cursor.file], cursor)
    before = (sum(sizes[: cursor.file]) + inside) / max(1, sum(sizes))
    return min(1.0, (cursor.turn + _of_window(one, cursor, before)) / one.repeat)


def _of_window(one: RowSet, cursor: Cursor, before: float) -> float:
    """The share of the used part, when so much of all files lies before the cursor."""
    start, end = one.window
    if cursor.seen == 0 or before == 0 or (start, end) == (0, None):
        return before
    total = cursor.seen / before
    last = total if end is None else min(total, end)
    return min(1.0, max(0.0, cursor.seen - start) / max(1.0, last - start))


def _of_file(file: DataFile, cursor: Cursor) -> float:
    if not (cursor.at or cursor.line):
        return 0.0
    if file.kind == "parquet":
        return cursor.line / max(1, tables.count_parquet(file))
    if file.kind == "arrow":
        return cursor.line / max(1, tables.count_arrow(file))
    return min(1.0, cursor.at / max(1.0, (file.size or 0) * expansion(file)))
