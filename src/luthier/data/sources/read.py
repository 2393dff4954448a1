"""The rows of one file from a mark on, whatever its kind."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from luthier.data.sources import csv_text, json_text, tables, text
from luthier.data.sources.files import DataFile, StreamFile, opened
from luthier.data.sources.row import START, Mark, Parsed
from luthier.data.sources.signs import EVERY_ROWS, Signs
from luthier.errors import DataError

_Item = TypeVar("_Item")


def read_file(file: DataFile, start: Mark = START, signs: Signs | None = None) -> Iterator[Parsed]:
    """The file's rows, one at a time. What lies before the start is not read; where it has to be unpacked or
    fetched, `signs` tells.

    Raises:
        DataError: if the file cannot be read, is of another kind than its name says, or is empty.
    """
    signs = signs or Signs()
    if not file.is_here:
        with signs.meanwhile(f"{file.name} is being fetched"):
            file.local()
    rows = _READERS[file.kind](file, *start, signs)
    first = next(rows, None)
    if first is None and start == START:
        raise DataError(f"{file.name} is empty: it has no rows; take it out of the data or fill it")
    if first is not None:
        yield first
        yield from rows


def count_rows(file: DataFile, signs: Signs | None = None) -> int:
    """How many rows the file gives, read as little as its kind allows. `signs` tells how far it is.

    Raises:
        DataError: as `read_file` does.
    """
    if file.kind == "parquet":
        return tables.count_parquet(file)
    if file.kind == "arrow":
        return tables.count_arrow(file)
    if file.kind in ("lines", "text"):
        with opened(file, 0) as stream:
            text.check_start(text.first_bytes(stream), file.name)
            return sum(map(_is_row, _told(stream, file, signs)))
    return sum(1 for _ in _told(read_file(file, START, signs), file, signs))


def _told(items: Iterable[_Item], file: DataFile, signs: Signs | None) -> Iterator[_Item]:
    """The same items, with a sign now and then."""
    for number, item in enumerate(items, start=1):
        yield item
        if signs is not None and number % EVERY_ROWS == 0:
            signs.tell(f"{file.name}: {number:,} rows counted")


_MARK = b"\xef\xbb\xbf"


def _is_row(line: bytes) -> bool:
    """Whether a line holds more than white space; only rare ones have to be decoded for that."""
    rest = line.lstrip()
    if rest and 0x20 < rest[0] < 0x7F:
        return True
    return bool(rest.decode(errors="replace").removeprefix("\ufeff").strip())


def _read_lines(file: DataFile, at: int, inside: int, line: int, signs: Signs) -> Iterator[Parsed]:
    read = text.read_text_lines if file.kind == "text" else text.read_json_lines
    with opened(file, at, signs) as stream:
        if not at and not isinstance(file, StreamFile):
            text.check_start(text.first_bytes(stream), file.name)
        yield from read(
            _counted(stream, file) if isinstance(file, StreamFile) else stream, file.name, at, line
        )


def _counted(stream: Any, file: StreamFile) -> Iterator[bytes]:
    """The lines of a stream, which remembers how far it was read."""
    for line in stream:
        file.passed += len(line)
        yield line


def _read_json(file: DataFile, at: int, inside: int, line: int, signs: Signs) -> Iterator[Parsed]:
    with opened(file, 0) as stream:
        start = text.first_bytes(stream)
        text.check_start(start, file.name)
        opening = _opening(stream)
    if opening == "{":
        with opened(file, 0) as stream:
            as_lines = json_text.begins_json_lines(stream)
        if as_lines:
            with opened(file, at, signs) as stream:
                yield from text.read_json_lines(stream, file.name, at, line)
            return
    with opened(file, at, signs) as stream:
        yield from json_text.read_json(stream, file.name, at, inside, line, opening)


def _opening(stream: Any) -> str:
    """The first character of a text that is no white space; empty if it has none."""
    while portion := stream.read(4096):
        if kept := portion.removeprefix(_MARK).lstrip():
            return chr(kept[0])
    return ""


def _read_csv(file: DataFile, at: int, inside: int, line: int, signs: Signs) -> Iterator[Parsed]:
    tabs = file.name.lower().removesuffix(file.packed).endswith(".tsv")
    with opened(file, 0) as stream:
        text.check_start(text.first_bytes(stream), file.name)
        header, delimiter, behind, num_lines = csv_text.read_header(stream, file.name, tabs)
        if not at:
            yield from csv_text.read_csv(stream, file.name, behind, num_lines, header, delimiter)
            return
    with opened(file, at, signs) as stream:
        yield from csv_text.read_csv(stream, file.name, at, line, header, delimiter)


_READERS: dict[str, Callable[[DataFile, int, int, int, Signs], Iterator[Parsed]]] = {
    "lines": _read_lines,
    "text": _read_lines,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": lambda file, at, inside, line, signs: tables.read_parquet(file, at, inside, line),
    "arrow": lambda file, at, inside, line, signs: tables.read_arrow(file, at, inside, line),
}
