"""Rows out of a `.json` file: a list of objects, or an object that holds one such list, or JSON lines.

The list is read piece by piece, so a file may be larger than memory. Only a piece that is not yet whole is read
again, with twice as much text behind it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from luthier.data.sources.row import Parsed, record_of
from luthier.data.sources.text import utf8
from luthier.data.values import in_words, listed
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
        value, self.position = self.look()
        return value

    def look(self) -> tuple[Any, int]:
        """The JSON value at the position, and the place behind it. Raises as `value` does."""
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
            return value, end

    def opens_objects(self) -> bool:
        """Whether the list at the position begins with an object."""
        return self._behind_bracket() == "{"

    def first_keys(self) -> set[str]:
        """The keys of the first object in the list at the position, which does not move."""
        while True:
            at = self.position + 1
            while at < len(self.text) and self.text[at] in " \t\r\n":
                at += 1
            try:
                return set(_decoder.raw_decode(self.text, at)[0])
            except json.JSONDecodeError:
                if not self.more():
                    raise

    def _behind_bracket(self) -> str:
        """The next character behind the one at the position that is no white space."""
        while True:
            rest = self.text[self.position + 1 :].lstrip(" \t\r\n")
            if rest or not self.more():
                return rest[:1]

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
    """The items of the one list of objects among an object's values; or the object itself, if it is a row."""
    found = _Others()
    if at:  # in the list, or behind it
        found.lists.append("the first")
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
        if text.peek() == "[" and text.opens_objects() and not found.is_row(key, text):
            found.lists.append(key)
            if len(found.lists) > 1:
                raise DataError(found.message(text.name))
            yield from _items(text, first=True)
        else:
            found.add(key, text.value())
        more = text.take(",")
    if text.peek() != "}":
        raise text.fault("Expecting ',' delimiter")
    is_row = not found.lists and found.is_whole_row
    if is_row:
        passed, line = text.mark()
        yield 1, found.values, None, passed, 1, line
    text.take("}")
    if text.peek():
        raise text.fault("Extra data")
    if not found.lists and not is_row:
        raise DataError(found.message(text.name))


_OF_A_ROW = frozenset(
    (
        *("messages", "conversations", "conversation", "history", "tools", "functions", "segments"),
        *("prompt", "completion", "completions", "chosen", "rejected", "answers", "responses"),
    )
)
"""Keys of lists of objects that belong to one row."""


@dataclass
class _Others:
    """What an object holds besides the list of its rows."""

    lists: list[str] = field(default_factory=list)
    """Keys of lists of objects."""
    values: dict[str, Any] = field(default_factory=dict)
    """Other values, while there is no such list: the object may be a row."""

    def add(self, key: str, value: Any) -> None:
        """A value that is no list of rows."""
        if isinstance(value, list) and key not in _OF_A_ROW and any(isinstance(item, dict) for item in value):
            self.lists.append(key)  # some items are objects: are they the rows?
        if not self.lists:
            self.values[key] = value

    def is_row(self, key: str, text: _Text) -> bool:
        """Whether a list of objects, at the text's position, shows that the object around it is one row."""
        return key in _OF_A_ROW and not self.lists and not _OF_A_ROW & text.first_keys()

    @property
    def is_whole_row(self) -> bool:
        """Whether the object is one row: it has a list of turns, or a text that is no note about a list."""
        own = self.values.items()
        turns = any(key in _OF_A_ROW and isinstance(value, list) and value for key, value in own)
        texts = [key for key, value in own if isinstance(value, str)]
        return (turns and not self._columns) or (bool(texts) and len(texts) == len(self.values))

    @property
    def _columns(self) -> list[str]:
        """Keys of lists of texts or numbers."""
        return [
            key
            for key, value in self.values.items()
            if isinstance(value, list) and value and not any(isinstance(item, dict) for item in value)
        ]

    def message(self, name: str) -> str:
        """Why the file cannot be read."""
        within = [
            f"`{key}.{inner}`"
            for key, value in self.values.items()
            if isinstance(value, dict)
            for inner, items in value.items()
            if isinstance(items, list) and items and isinstance(items[0], dict)
        ]
        objects = [key for key, value in self.values.items() if isinstance(value, dict)]
        if self.lists:
            found = f"the lists in it are {listed(self.lists)}; give each as a file of its own"
        elif within:
            found = f"the list is {', '.join(within[:5])}; write that list alone to the file"
        elif self._columns:
            found = f"it has columns instead: {listed(self._columns)}; write one object for each row"
        elif objects:
            found = f"it has objects by name instead: {listed(objects)}; write them as a list"
        else:
            found = f"it has {listed(list(self.values)) if self.values else 'nothing'}"
        return (
            f"{name} holds one object; its rows must be the one list of objects in it, but {found}. "
            "Rows are a list of objects, or one object a line as .jsonl"
        )
