"""Tool calls in what a model writes: how its template has them, found by asking it, and read as they come.

Known are templates that write a call as one JSON object with a name and arguments, with or without something around it:
`<tool_call>` of Qwen and Hermes, the bare object of Llama 3, lists of Mistral. Calls of all others stay text.
"""

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonpath
from typing import Any

from luthier.data.chat import ChatTemplate
from luthier.errors import LuthierError

_NAME, _KEY, _VALUE = "probe_of_calls", "probe_key", "probe_value"
_TOOL = {
    "type": "function",
    "function": {
        "name": "another_tool",
        "description": "Nothing.",
        "parameters": {"type": "object", "properties": {}},
    },
}


@dataclass(frozen=True)
class CallFormat:
    """How calls are written."""

    opener: str
    """Before each; empty: an answer that begins with JSON is a call."""
    closer: str
    name_key: str
    arguments_key: str


@dataclass(frozen=True)
class Call:
    """A tool that the model wants called."""

    name: str
    arguments: str
    """JSON text."""

    def as_openai(self) -> dict[str, Any]:
        """With a new id."""
        return {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


def call_format(template: ChatTemplate) -> CallFormat | None:
    """How the template writes an assistant's call; None if that is not known."""
    question = {"role": "user", "content": "question"}
    inner = {"name": _NAME, "arguments": {_KEY: _VALUE}}
    call = {"id": "probe0000", "type": "function", "function": inner}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    try:
        before = template.prompt_text([question], [_TOOL])
        text = template.prompt_text([question, asked], [_TOOL])
    except LuthierError:
        return None
    found = _object_with(text, _NAME)
    if found is None:
        return None
    start, end, value = found
    name_key = next((key for key, item in value.items() if item == _NAME), None)
    arguments_key = next((key for key, item in value.items() if item == {_KEY: _VALUE}), None)
    if name_key is None or arguments_key is None:
        return None
    special = [token for token, is_special in template.encoder.added.items() if is_special]
    opener, closer = _around(text, before, start, end, special)
    return CallFormat(opener, closer, name_key, arguments_key)


def _object_with(text: str, name: str) -> tuple[int, int, dict[str, Any]] | None:
    """The innermost JSON object around the name that has it as a value."""
    place = text.find(name)
    start = text.rfind("{", 0, place)
    while start >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            return None
        if end > place and isinstance(value, dict):
            return start, end, value
        start = text.rfind("{", 0, start)
    return None


def _around(text: str, before: str, start: int, end: int, special: Sequence[str]) -> tuple[str, str]:
    """What is written around the object, without white space, brackets of lists and special tokens."""
    head = text[len(commonpath([text, before])) : start]
    tail = text[end:]
    for token in special:
        head = head.rpartition(token)[2]
        tail = tail.partition(token)[0]
    head = head.strip().removesuffix("[").strip()
    return head.rpartition("\n")[2], tail.strip().removeprefix("]").strip()


class CallReader:
    """Parts the text of one answer into plain text and calls, while it comes.

    Args:
        format: how calls are written.
        names: the tools that there are; what calls another one stays text.
    """

    def __init__(self, format: CallFormat, names: Sequence[str]):
        self._format, self._names = format, frozenset(names)
        self._held = ""
        self._inside = False
        self._plain = False  # without an opener: the answer has begun, and not with JSON
        self.num_calls = 0

    def push(self, text: str) -> list[str | Call]:
        """What is certain with this piece of text."""
        self._held += text
        return list(self._parts(last=False))

    def close(self) -> list[str | Call]:
        """What is left: no text follows."""
        return list(self._parts(last=True))

    def _parts(self, last: bool) -> Iterator[str | Call]:
        while self._held:
            before = self._held, self._inside
            yield from (self._tagged(last) if self._format.opener else self._bare(last))
            if (self._held, self._inside) == before:
                return

    def _tagged(self, last: bool) -> Iterator[str | Call]:
        opener = self._format.opener
        if self._inside:
            yield from self._call(last)
            return
        place = self._held.find(opener)
        if place >= 0:
            if text := self._held[:place].rstrip():
                yield text
            self._held, self._inside = self._held[place + len(opener) :], True
            return
        # White space may belong to a call that follows, or to one that went before.
        sure = self._held if last else self._held[: len(self._held) - _beginning(self._held, opener)].rstrip()
        if sure.strip() or not self.num_calls:
            yield from [sure] if sure else []
            self._held = self._held[len(sure) :]
        elif last:
            self._held = ""

    def _call(self, last: bool) -> Iterator[str | Call]:
        """The call that the held text begins with; as it was written, if it is none."""
        body, closer = self._held.lstrip(), self._format.closer
        try:
            value, end = json.JSONDecoder().raw_decode(body)
        except (ValueError, RecursionError):
            if not last and not (closer and closer in body):
                return
            value, end = None, len(body.partition(closer)[0]) if closer else len(body)
        rest = body[end:].lstrip()
        if not last and len(rest) < len(closer) and closer.startswith(rest):
            return  # the closer is still coming
        after = rest.removeprefix(closer)
        calls = self._calls(value)
        if calls is None:
            written = self._format.opener + self._held[: len(self._held) - len(after)]
            self._held, self._inside = after, False
            yield written
            return
        self._held, self._inside = after, False
        yield from calls

    def _bare(self, last: bool) -> Iterator[str | Call]:
        if not self._plain and self._held.lstrip()[:1] in ("{", "["):
            if not last:
                return
            try:
                calls = self._calls(json.loads(self._held))
            except (ValueError, RecursionError):
                calls = None
            if calls is not None:
                yield from calls
                self._held = ""
                return
        if self._held.strip() or last or self._plain:
            self._plain = True
            yield self._held
            self._held = ""

    def _calls(self, value: Any) -> list[Call] | None:
        """The calls of a JSON value, one or a list; None if it is anything else."""
        found = [self._one(item) for item in (value if isinstance(value, list) else [value])]
        calls = [call for call in found if call is not None]
        if not calls or len(calls) < len(found):
            return None
        self.num_calls += len(calls)
        return calls

    def _one(self, value: Any) -> Call | None:
        name = value.get(self._format.name_key) if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in self._names:
            return None
        arguments = value.get(self._format.arguments_key, {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return Call(name, text)


def _beginning(text: str, word: str) -> int:
    """Length of the longest end of the text that begins the word."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if word.startswith(text[-n:])), 0)
