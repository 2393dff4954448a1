"""Rows out of files: JSON lines, JSON, parquet, folders of these, gzipped text.

What is wrong with a file stops the run (`DataError`, with the file's name). What is wrong with one line is
that row's fault and goes to the ledger; the rows around it are read.
"""

import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import DataError

SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Row:
    """One row as it was read. Either it has a record, or a fault that says why not."""

    number: int
    """Counted from 0 over all files."""
    file: str
    line: int
    """Counted from 1: the line of a text file (where the row starts), the row of a parquet file."""
    record: dict[str, Any] | None
    fault: str | None = None

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.file}:{self.line}"


def list_files(paths: Sequence[str | Path]) -> list[Path]:
    """The data files behind the paths, folders opened, in the order they are read.

    Raises:
        DataError: if a path is missing, of an unknown kind, or a folder without data.
    """
    return [file for path in paths for file in _files(str(path))]


def read_rows(paths: Sequence[str | Path]) -> Iterator[Row]:
    """All rows of all files, one at a time.

    Raises:
        DataError: if a file cannot be read at all, naming it.
    """
    number = 0
    for file in list_files(paths):
        empty = True
        for line, record, fault in _read(file):
            yield Row(number, str(file), line, record, fault)
            number += 1
            empty = False
        if empty:
            raise DataError(f"{file} is empty: it has no rows; take it out of data.path or fill it")


def _files(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if _is_data(file, path)]
        if not inside:
            names = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
            raise DataError(f"the folder {given} has no data files ({', '.join(SUFFIXES)}); it holds {names}")
        return inside
    if not path.exists():
        raise DataError(_missing(given, path))
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(
            f"{given} is of an unknown kind; data files end with {', '.join(SUFFIXES)}. "
            "Convert it, or rename it if it holds one of these"
        )
    return [path]


def _is_data(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and not hidden and file.name.lower().endswith(SUFFIXES)


def _missing(given: str, path: Path) -> str:
    remote = re.match(r"[a-z0-9]+://|hf:", given)
    if remote or (re.fullmatch(r"[\w.-]+/[\w.-]+", given) and not path.parent.is_dir() and not path.suffix):
        return f"{given}: hub ids and URLs are not supported yet; download it and give the file in data.path"
    if not path.parent.is_dir():
        return f"{given} does not exist, and neither does its folder {path.parent}"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], 1)
    return f"{given} does not exist" + (f"; did you mean {path.parent / near[0]}?" if near else "")


Parsed = tuple[int, dict[str, Any] | None, str | None]


def _read(file: Path) -> Iterator[Parsed]:
    name = file.name.lower().removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            yield from _read_parquet(file)
        elif name.endswith(".jsonl"):
            with _open(file) as stream:
                yield from _read_lines(file, stream)
        else:
            with _open(file) as stream:
                content = stream.read()
            yield from _read_json(file, _decode(content, file, 0).removeprefix("\ufeff"))
    except (EOFError, gzip.BadGzipFile, zlib.error) as fault:
        raise DataError(f"{file} is not a whole gzip file: {fault}; write or fetch it again") from fault
    except OSError as fault:
        raise DataError(f"{file} cannot be read: {fault.strerror or fault}") from fault


def _open(file: Path) -> io.BufferedIOBase:
    return gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb")


def _decode(content: bytes, file: Path, offset: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise DataError(
            f"{file} is not UTF-8 text: byte 0x{content[fault.start]:02x} at offset {offset + fault.start}; "
            "convert the file to UTF-8"
        ) from fault


def _read_lines(file: Path, stream: io.BufferedIOBase) -> Iterator[Parsed]:
    offset = 0
    for number, raw in enumerate(stream, start=1):
        # The mark can stand at any line, where files were joined.
        text = _decode(raw, file, offset).removeprefix("\ufeff").strip()
        offset += len(raw)
        if text:
            yield number, *_parse_line(text)


def _parse_line(text: str) -> tuple[dict[str, Any] | None, str | None]:
    try:
        return _record(json.loads(text))
    except json.JSONDecodeError as fault:
        return None, f"the line is not valid JSON: {fault.msg} at column {fault.colno}"
    except (ValueError, RecursionError) as fault:  # a number of thousands of digits, brackets without end
        return None, f"the line is not JSON that can be read: {fault}"


def _record(value: Any) -> tuple[dict[str, Any] | None, str | None]:
    if isinstance(value, dict):
        return value, None
    return None, f"the row is a JSON {type(value).__name__}, not an object with columns"


def _read_json(file: Path, text: str) -> Iterator[Parsed]:
    """A list of objects, or an object that holds one such list."""
    try:
        start = _skip_space(text, 0)
        if start == len(text):
            return
        if text[start] == "[":
            yield from _read_list(text, start)
            return
        rows = _only_list(json.loads(text), file)
        for number, value in enumerate(rows, start=1):
            yield number, *_record(value)
    except json.JSONDecodeError as fault:
        hint = "; one object a line is called .jsonl" if fault.msg == "Extra data" else ""
        raise DataError(
            f"{file} is not valid JSON: {fault.msg} at line {fault.lineno}, column {fault.colno}{hint}"
        ) from fault
    except RecursionError as fault:
        raise DataError(f"{file} is not JSON that can be read: its brackets are nested too deep") from fault


def _read_list(text: str, start: int) -> Iterator[Parsed]:
    """The items of a JSON list with the line that each starts in."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    position = _skip_space(text, start + 1)
    if text[position : position + 1] == "]":
        position += 1
    else:
        while True:
            line, counted = line + text.count("\n", counted, position), position
            value, position = decoder.raw_decode(text, position)
            yield line, *_record(value)
            position = _skip_space(text, position)
            separator = text[position : position + 1]
            position = _skip_space(text, position + 1)
            if separator == "]":
                break
            if separator != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, min(position, len(text)) - 1)
    if _skip_space(text, position) != len(text):
        raise json.JSONDecodeError("Extra data", text, position)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _only_list(value: Any, file: Path) -> list[Any]:
    if not isinstance(value, dict):
        raise DataError(f"{file} holds a JSON {type(value).__name__}; it must hold a list of objects")
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    if len(lists) != 1:
        found = ", ".join(f"`{key}`" for key in lists) or "none"
        raise DataError(
            f"{file} holds one object; its rows must be the one list in it, but the lists are: {found}. "
            "Write the rows as a list of objects"
        )
    return next(iter(lists.values()))


def _read_parquet(file: Path) -> Iterator[Parsed]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield number, {name: _without_nulls(value) for name, value in record.items()}, None
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as fault:
        if isinstance(fault, OSError) and fault.errno is not None:
            raise  # the disk's; pyarrow has OSErrors of its own for broken content
        reason = str(fault).splitlines()[0]
        raise DataError(f"{file} is not a whole parquet file: {reason}; write or fetch it again") from fault


def _without_nulls(value: Any) -> Any:
    """A parquet value without the nulls that its table put in: all rows of a column share one set of fields."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None or k == "content"}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
