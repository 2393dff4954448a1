"""Rows out of text with one row a line: JSON lines and plain text."""

import codecs
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from luthier.data.sources.row import Parsed, record_of
from luthier.errors import DataError

_MARK = "\ufeff"
_scan = vars(json.JSONDecoder())["scan_once"]  # what json.loads ends in, without its five layers of calls
_FORMATS = {
    b"\x1f\x8b": "gzip data; let its name end with .gz",
    b"\x28\xb5\x2f\xfd": "zstd data; let its name end with .zst",
    b"PAR1": "a parquet file; let its name end with .parquet",
    b"ARROW1": "an Arrow file; let its name end with .arrow",
    b"PK\x03\x04": "a zip archive or an office document; unpack or export it",
    b"version https://git-lfs": "a pointer to a file in Git LFS, not the file; run `git lfs pull`",
    b"<!DOCTYPE": "a web page, not data; download the file itself",
    b"<!doctype": "a web page, not data; download the file itself",
    b"<html": "a web page, not data; download the file itself",
}
_WIDE = ((codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))


def check_start(start: bytes, name: str) -> None:
    """Looks at the first bytes of what should be text.

    Raises:
        DataError: if they belong to another kind of file, or to text in another encoding.
    """
    for magic, what in _FORMATS.items():
        if start.startswith(magic):
            raise DataError(f"{name} is {what}")
    wide = next((what for mark, what in _WIDE if start.startswith(mark)), None)
    if wide is None and len(start) >= 4 and start[:4].count(0) in (2, 3):
        wide = "UTF-16" if start[:4].count(0) == 2 else "UTF-32"
    if wide is not None:
        raise DataError(
            f"{name} is {wide} text; convert it to UTF-8 (for example `iconv -f {wide} -t UTF-8 FILE > NEW`)"
        )


def utf8(content: bytes, name: str, offset: int) -> str:
    """The text of some bytes of a file.

    Raises:
        DataError: if they are not UTF-8, with the place in the file.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise DataError(
            f"{name} is not UTF-8 text: byte 0x{content[fault.start]:02x} at offset {offset + fault.start}; "
            "convert the file to UTF-8"
        ) from fault


def decoded(line: bytes, name: str, offset: int) -> str:
    """The text of a line without a byte order mark, which can stand at any line where files were joined."""
    return utf8(line, name, offset).removeprefix(_MARK)


def first_bytes(stream: BinaryIO) -> bytes:
    """The first bytes of a stream that stays where it is; empty if it cannot look ahead."""
    return stream.peek(64)[:64] if isinstance(stream, io.BufferedReader) else b""


def read_json_lines(stream: Iterable[bytes], name: str, at: int, line: int) -> Iterator[Parsed]:
    """One JSON object a line; empty lines count as lines only.

    Raises:
        DataError: if the text is not UTF-8, or the file is JSON of another shape.
    """
    first = at == 0
    for raw in stream:
        line += 1
        offset, at = at, at + len(raw)
        try:
            text = raw.decode()
            value, end = _scan(text, 0)
        except (StopIteration, ValueError, RecursionError):
            text, value, end = "", None, 0  # the slow way finds out what it is
        if type(value) is dict and (end == len(text) or text[end:].isspace()):
            first = False
            yield line, value, None, at, 0, line
            continue
        text = decoded(raw, name, offset).strip()
        if not text:
            continue
        record, fault = _parse_line(text)
        if first and fault is not None:
            _refuse_other_shapes(text, name)
        first = False
        yield line, record, fault, at, 0, line


def read_text_lines(stream: Iterable[bytes], name: str, at: int, line: int) -> Iterator[Parsed]:
    """One text a line, as the column `text`; lines of white space are no rows.

    Raises:
        DataError: if the text is not UTF-8, or its first line is a JSON object.
    """
    first = at == 0
    for raw in stream:
        line += 1
        text = decoded(raw, name, at).removesuffix("\n").removesuffix("\r")
        at += len(raw)
        if text and not text.isspace():
            if first and text.lstrip().startswith("{") and _parse_line(text.strip())[0] is not None:
                raise DataError(f"{name}:{line} holds JSON lines; let its name end with .jsonl")
            first = False
            yield line, {"text": text}, None, at, 0, line


def _parse_line(text: str) -> tuple[dict[str, Any] | None, str | None]:
    try:
        return record_of(json.loads(text))
    except json.JSONDecodeError as fault:
        return None, f"the line is not valid JSON: {fault.msg} at column {fault.colno}"
    except (ValueError, RecursionError) as fault:  # a number of thousands of digits, brackets without end
        return None, f"the line is not JSON that can be read: {fault}"


def _refuse_other_shapes(text: str, name: str) -> None:
    """Stops where a file's first line shows that the whole file is not one object a line."""
    if text in ("{", "[", "[{", "[ {"):
        kind = "a list" if text[0] == "[" else "objects over several lines"
        advice = "let its name end with .json" if text[0] == "[" else "write each object on one line"
        raise DataError(f"{name}:1 begins JSON with {kind}, not one object a line; {advice}")
    if text[0] != "[":
        return
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return
    if items and all(isinstance(item, dict) for item in items):
        raise DataError(
            f"{name}:1 holds a whole list of {len(items)} rows; let the file's name end with .json, "
            "or write one object a line"
        )
