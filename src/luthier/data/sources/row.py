"""A row as it was read, and the place in a file where the next one begins."""

from typing import Any, NamedTuple

from luthier.data.values import in_words


class Row(NamedTuple):
    """One row as it was read. Either it has a record, or a fault that says why not."""

    number: int
    """Counted from 0 in the order of the epoch."""
    file: str
    line: int
    """Counted from 1: the line of a text file (where the row starts), the row of a table file."""
    record: dict[str, Any] | None
    fault: str | None = None
    set: int = 0
    """Which of the source's data sets it comes from, counted from 0."""

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.file}:{self.line}"


class Mark(NamedTuple):
    """Where in a file the next row begins."""

    at: int = 0
    """Bytes of the (unpacked) text before it; in a table file the group of rows."""
    inside: int = 0
    """Rows before it in its group; in a JSON file 1 behind the end of the list."""
    line: int = 0
    """Lines before it; in a table file rows."""


Parsed = tuple[int, dict[str, Any] | None, str | None, int, int, int]
"""What a reader gives for a row: its line, its record or its fault, and the three numbers of the mark behind it."""

START = Mark()


def record_of(value: Any) -> tuple[dict[str, Any] | None, str | None]:
    """The value as a record, or the reason why it is none."""
    if isinstance(value, dict):
        return value, None
    return None, f"the row is {in_words(value)}, not an object with columns"
