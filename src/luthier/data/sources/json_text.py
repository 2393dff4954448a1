"""Rows out of a `.json` file: a list of objects, or an object that holds one such list, or JSON lines.

The list is read piece by piece, so a file may be larger than memory. Only a piece that is not yet whole is read
again, with twice as much text behind it.
"""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from luthier.data.sources.row import Parsed, record_of
from luthier.data.sources.text import utf8
from luthier.data.values import in_words
from luthier.errors import DataError

_PORTION = 1 << 20
_NEAR_END = 16  # no token that a cut can spoil, other than a string, is longer
_decoder = json.JSONDecoder()


class _Text:
    """A window on the text of a file, with a position in it."""

    def __init__(self, stream: BinaryIO, name: str, at: int, line: int):
        self._stream, self.name = stream, name
        self.text = ""
        self.position = 0
        self._at, self._line, self._counted = at, line, 0
        self._start = (line, 0)
        self._tail = b""
        self._read = at
        self._ended = False

    def more(self) -> bool:
        """Reads on, at least as much again as is still ahead; False at the end of the file."""
        if self._ended:
            return False
        self._forget()
        portion = self._stream.read(max(_PORTION, len(self.text)))
        self._ended = not portion
        content = self._tail + portion
        whole = len(content) if self._ended else _whole_characters(content)
        self._tail = content[whole:]
        text = utf8(content[:whole], self.name, self._read)
        if self._read == 0 and text.startswith("\ufeff"):
            text = text[1:]
            self._at = 3
        self._read += whole
        self.text += text
        return True

    def _forget(self) -> None:
        """Moves the start of the window to the position."""
        self.mark()
        passed = self.text[: self.position]
        line, column = self._start
        ends = passed.count("\n")
        self._start = (line + ends, len(passed) - passed.rfind("\n") - 1 if ends else column + len(passed))
        self.text = self.text[self.position :]
        self.position = self._counted = 0

    def mark(self) -> tuple[int, int]:
        """Bytes and lines before the position."""
        passed = self.text[self._counted : self.position]
        self._at += len(passed) if passed.isascii() else len(passed.encode())
        self._line += passed.count("\n")
        self._counted = self.position
        return self._at, self._line

    def place(self, position: int) -> tuple[int, int]:
        """Line and column of a character of the window, counted from 1."""
        line, column = self._start
        before = self.text[:position]
        ends = before.count("\n")
        return line + ends + 1, (position - before.rfind("\n") if ends else column + position + 1)

    def peek(self) -> str:
        """The next character that is no white space, which becomes the position; empty at the end."""
        while True:
            text, position = self.text, self.position
            while position < len(text) and text[position] in " \t\r\n":
                position += 1
            self.position = position
            if position < len(text):
                return text[position]
            if not self.more():
                return ""

    def value(self) -> Any:
        """The JSON value at the position, which moves behind it. Raises JSONDecodeError and RecursionError."""
        while True:
            try:
                value, end = _decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as fault:
                cut = fault.msg.startswith("Unterminated string") or fault.pos >= len(self.text) - _NEAR_END
                if not (cut and self.more()):
                    raise
                continue
            if end >= len(self.text) - _NEAR_END and isinstance(value, int | float) and self.more():
                continue  # the number may go on
            self.position = end
            return value

    def take(self, wanted: str) -> bool:
        """Whether the next character is the wanted one; then the position moves behind it."""
        if self.peek() != wanted:
            return False
        self.position += 1
        return True

    def fault(self, message: str) -> json.JSONDecodeError:
        """An error at the position."""
        return json.JSONDecodeError(message, self.text, self.position)


def _whole_characters(content: bytes) -> int:
    """How many bytes there are up to the last character that is whole."""
    for back in range(1, min(4, len(content)) + 1):
        byte = content[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(content) - back if length > back else len(content)
        if byte < 0x80:
            break
    return len(content)


def begins_json_lines(stream: BinaryIO) -> bool:
    """Whether a `.json` file holds one object a line: its first line is an object, and another text follows it."""
    line = stream.readline(_PORTION * 64)
    while line and not line.strip():
        line = stream.readline(_PORTION * 64)
    if not line.lstrip(b"\xef\xbb\xbf \t").startswith(b"{"):
        return False
    try:
        if not isinstance(json.loads(line.decode("utf-8-sig")), dict):
            return False
    except (ValueError, RecursionError):
        return False
    while line := stream.readline(_PORTION):
        if line.strip():
            return True
    return False


def read_json(stream: BinaryIO, name: str, at: int, inside: int, line: int, opening: str) -> Iterator[Parsed]:
    """The items of the list. `opening`: the file's first character, `[` or `{`, told apart from the start.

    Raises:
        DataError: if the text is not UTF-8, not JSON, or JSON of another shape.
    """
    text = _Text(stream, name, at, line)
    try:
        if opening == "[":
            yield from _whole_list(text, at, inside)
        elif opening == "{":
            yield from _list_in_object(text, at, inside)
        elif text.peek():
            value = text.value()
            raise DataError(f"{name} holds {in_words(value)}; it must hold a list of objects")
    except json.JSONDecodeError as fault:
        hint = "; one object a line is called .jsonl" if fault.msg == "Extra data" else ""
        row, column = text.place(fault.pos)
        raise DataError(
            f"{name} is not valid JSON: {fault.msg} at line {row}, column {column}{hint}"
        ) from fault
    except RecursionError as fault:
        raise DataError(f"{name} is not JSON that can be read: its brackets are nested too deep") from fault
    except DataError:
        raise
    except ValueError as fault:  # a number of thousands of digits
        row, _ = text.place(text.position)
        raise DataError(f"{name}:{row} is not JSON that can be read: {fault}") from fault


def _whole_list(text: _Text, at: int, inside: int) -> Iterator[Parsed]:
    if not inside:
        yield from _items(text, first=at == 0)
    if text.peek():
        raise text.fault("Extra data")


def _items(text: _Text, first: bool) -> Iterator[Parsed]:
    """The items up to the end of the list, whose bracket is opened at the start (`first`) or long before."""
    if first:
        text.take("[")
        if text.take("]"):
            return
    while True:
        text.peek()
        line = text.mark()[1] + 1
        value = text.value()
        ended = text.take("]")
        if not ended and not text.take(","):
            raise text.fault("Expecting ',' delimiter")
        at, passed = text.mark()
        yield line, *record_of(value), at, int(ended), passed
        if ended:
            return


def _list_in_object(text: _Text, at: int, inside: int) -> Iterator[Parsed]:
    """The items of the one list among an object's values."""
    lists: list[str] = []
    if at:  # in the list, or behind it
        lists.append("the first")
        if not inside:
            yield from _items(text, first=False)
    else:
        text.take("{")
    more = text.take(",") if at else text.peek() != "}"
    while more:
        if text.peek() != '"':
            raise text.fault("Expecting property name enclosed in double quotes")
        key = text.value()
        if not text.take(":"):
            raise text.fault("Expecting ':' delimiter")
        if text.peek() != "[":
            text.value()
        else:
            lists.append(key)
            if len(lists) > 1:
                raise DataError(_other_lists(text.name, lists))
            yield from _items(text, first=True)
        more = text.take(",")
    if not text.take("}"):
        raise text.fault("Expecting ',' delimiter")
    if text.peek():
        raise text.fault("Extra data")
    if not lists:
        raise DataError(_other_lists(text.name, lists))


def _other_lists(name: str, lists: list[str]) -> str:
    found = ", ".join(f"`{key}`" for key in lists) or "none"
    return (
        f"{name} holds one object; its rows must be the one list in it, but the lists are: {found}. "
        "Write the rows as a list of objects, or one object a line as .jsonl"
    )
