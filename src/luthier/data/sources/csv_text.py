"""Rows out of CSV: the first line names the columns, every cell is text.

Cells may stand in double quotes, with `""` for a quote inside; then they may hold the delimiter and ends of
lines, and blanks around the quotes do not count. The standard library's reader is not used because it keeps one
limit of 128 KiB a cell for the whole process.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

from luthier.data.sources.row import Parsed
from luthier.data.sources.text import decoded
from luthier.errors import DataError

DELIMITERS = (",", ";", "\t", "|")
_SAID = re.compile(r'"?sep=([,;\t|])"?\s*', re.IGNORECASE)
_OPENING = re.compile(r' *"')
_BLANKS = re.compile(" *")
_QUOTED_REST = re.compile(r'[^"]*(?:""[^"]*)*"(?!")')
UNNAMED = "Unnamed: 0"
"""What a first column without a name is called, as in pandas, which writes its row numbers like this."""
_LONG_NAME = 200


class _Lines:
    """The lines of a file, with the bytes and the lines that were taken."""

    def __init__(self, stream: BinaryIO, name: str, at: int, line: int):
        self._stream, self._name = stream, name
        self.at, self.line = at, line

    def next(self) -> str | None:
        """The next line with its end, or None."""
        raw = self._stream.readline()
        if not raw:
            return None
        text = decoded(raw, self._name, self.at)
        self.at += len(raw)
        self.line += 1
        return text


def read_csv(
    stream: BinaryIO, name: str, at: int, line: int, header: list[str], delimiter: str
) -> Iterator[Parsed]:
    """The records behind the header, one row each.

    Raises:
        DataError: if the text is not UTF-8, or a quote is opened and never closed.
    """
    lines = _Lines(stream, name, at, line)
    width = len(header)  # empty cells behind the last column are no cells
    while (text := lines.next()) is not None:
        start = lines.line
        if text.isspace():
            continue
        cells = _cells(text, delimiter, lines, name)
        if cells is None:
            fault = "text after a closing quote; write double quotes inside cells twice"
            yield start, None, fault, lines.at, 0, lines.line
        elif len(cells) == width or (len(cells) > width and not any(cells[width:])):
            yield start, dict(zip(header, cells[:width], strict=True)), None, lines.at, 0, lines.line
        else:
            fault = f"the line has {len(cells)} cells, but the header names {width} columns"
            yield start, None, fault, lines.at, 0, lines.line


def read_header(stream: BinaryIO, name: str, tabs: bool) -> tuple[list[str], str, int, int]:
    """The columns' names, the delimiter, and the bytes and lines that the header takes.

    The delimiter is a tab for `.tsv`; else what a line `sep=;` in front says, as spreadsheets write it; else the
    first of `,` `;` tab `|` that cuts the first line. Names that are empty at the end of the line are no columns.

    Raises:
        DataError: if the first line does not look like a header.
    """
    lines = _Lines(stream, name, 0, 0)
    text = lines.next()
    while text is not None and not text.strip():
        text = lines.next()
    if text is None:
        return [], ",", lines.at, lines.line
    choices = ("\t",) if tabs else DELIMITERS
    if (said := _SAID.fullmatch(text)) and (following := lines.next()) is not None:
        choices, text = (said[1],), following
    delimiter = next((one for one in choices if one in text), choices[0])
    cells = _cells(text, delimiter, lines, name)
    if cells is None:
        raise DataError(
            f"{name}:{lines.line} has text after a closing quote; write double quotes inside cells twice"
        )
    header = [cell.strip() for cell in cells]
    while len(header) > 1 and not header[-1]:
        header.pop()
    if header[0] == "" and len(header) > 1:
        header[0] = UNNAMED
    _check_header(header, name, lines.line)
    return header, delimiter, lines.at, lines.line


def _check_header(header: list[str], name: str, line: int) -> None:
    twice = next((column for column in header if header.count(column) > 1), None)
    fault = None
    if "" in header:
        fault = f"column {header.index('') + 1} has no name"
    elif twice is not None:
        fault = f"the column `{twice}` stands there twice"
    elif any(_is_number(column) for column in header):
        fault = (
            f"`{next(column for column in header if _is_number(column))}` is a number, not a column's name"
        )
    elif max(map(len, header)) > _LONG_NAME:
        fault = f"a cell has {max(map(len, header))} characters, which is no column's name"
    if fault:
        raise DataError(
            f"{name}:{line} should name the columns, but {fault}; write a first line such as `prompt,completion`"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() not in ("nan", "inf", "infinity")


def _cells(text: str, delimiter: str, lines: _Lines, name: str) -> list[str] | None:
    """The cells of the record that begins with a line; takes more lines where a cell goes over its end.

    Text behind a closing quote: between tabs, and where blanks stand before the opening one, the quotes are taken as
    they stand, else there are no cells (None).
    """
    if '"' not in text:
        return _without_end(text).split(delimiter)
    cells: list[str] = []
    position = 0
    while True:
        value = ""
        opening = _OPENING.match(text, position)
        if opening and _QUOTED_REST.match(text, opening.end()) is None and opening.end() > position + 1:
            opening = None  # blanks before a quote that nothing closes on this line: it is meant as it stands
        if opening:
            first, opened, before = text, position, lines.line
            value, text, position = _quoted(text, opening.end(), lines, name)
            behind = _behind(text, position)
            if text.startswith(delimiter, behind) or not _without_end(text[behind:]):
                position = behind
            elif lines.line == before and (delimiter == "\t" or opening.end() > opened + 1):
                value, text, position = "", first, opened
            else:
                return None
        end = text.find(delimiter, position)
        if end < 0:
            return [*cells, value + _without_end(text[position:])]
        cells.append(value + text[position:end])
        position = end + 1


def _behind(text: str, position: int) -> int:
    """The place behind the blanks at a place."""
    blanks = _BLANKS.match(text, position)
    return blanks.end() if blanks else position


def _quoted(text: str, position: int, lines: _Lines, name: str) -> tuple[str, str, int]:
    """A cell's text up to its closing quote, the line where that stands, and the place behind it."""
    first, parts = lines.line, []
    while (closing := _QUOTED_REST.match(text, position)) is None:
        parts.append(text[position:])
        following = lines.next()
        if following is None:
            raise DataError(
                f'{name}:{first} opens a quote (") that is never closed; double it if it is meant'
            )
        text, position = following, 0
    parts.append(text[position : closing.end() - 1])
    return "".join(parts).replace('""', '"'), text, closing.end()


def _without_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
