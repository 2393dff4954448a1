"""The form in which a template wants its messages.

Templates disagree about small things: whether content is text or a list of parts, whether the arguments of a
tool call are an object or JSON text. Rows are kept in one form (`conversation.py`) and turned into the
template's own here. What follows is also what transformers does to messages before it renders them.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.conversation import REASONING_FIELDS, Message


@dataclass(frozen=True)
class Form:
    """How a template reads a message."""

    parts: bool = False
    """Content is a list of `{type: text, text: …}` instead of a text."""
    text_arguments: bool = False
    """Arguments of a tool call are JSON text instead of an object."""
    empty_content: bool = False
    """A message without content needs an empty one."""


def adapt(messages: Sequence[Message], form: Form) -> list[Message]:
    """Fresh messages as the template reads them: no nulls, reasoning under the names that templates use."""
    return [_adapt(message, form) for message in messages]


def _adapt(message: Message, form: Form) -> Message:
    result = {key: value for key, value in message.items() if value is not None}
    if form.empty_content:
        result.setdefault("content", "")
    if form.parts and "content" in result:
        result["content"] = [{"type": "text", "text": result["content"]}]
    if form.text_arguments and "tool_calls" in result:
        result["tool_calls"] = [_with_text_arguments(call) for call in result["tool_calls"]]
    reasoning = reasoning_of(message)
    if reasoning is not None:
        result = {"thinking": reasoning, **result, "reasoning_content": reasoning}
    return result


def reasoning_of(message: Message) -> str | None:
    """The reasoning of a message, under whichever name it has."""
    return next((message[name] for name in REASONING_FIELDS if message.get(name) is not None), None)


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    inner = call.get("function", call)
    inner = {**inner, "arguments": json.dumps(inner["arguments"], ensure_ascii=False)}
    return {**call, "function": inner} if "function" in call else inner


# Digits come out of every filter as they went in: case, JSON, Python's notation, white space.
_BEFORE, _AFTER = "8410573926", "6293750148"
SENTINEL = re.compile(f"{_BEFORE}([0-9]{{6}})([0-9]{{2}}){_AFTER}")
"""What stands for a message's text when a template is asked where it puts it; no row may contain it."""
SENTINEL_START = _BEFORE
"""What every sentinel begins with."""
MAX_MESSAGES = 400_000
"""As many messages as there are sentinels for."""


def content_sentinel(number: int) -> str:
    """Stands for the text of a message."""
    return f"{_BEFORE}{2 * number:06d}00{_AFTER}"


def call_sentinel(number: int, index: int = 0) -> str:
    """Stands for anything in one of the tool calls of a message."""
    return f"{_BEFORE}{2 * number + 1:06d}{index % 100:02d}{_AFTER}"


def owner(sentinel: re.Match[str]) -> tuple[int, bool]:
    """The message that a sentinel belongs to, and whether it stands for a tool call."""
    return int(sentinel[1]) // 2, bool(int(sentinel[1]) % 2)


def num_texts(call: dict[str, Any]) -> int:
    """How often the sentinel of a tool call stands in it: in its name, and once for every text."""
    return 1 + _num_texts(call.get("function", call)["arguments"])


def _num_texts(value: Any) -> int:
    if isinstance(value, dict | list):
        return sum(_num_texts(item) for item in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, str)


def twin(messages: Sequence[Message], weights: Sequence[float]) -> list[Message]:
    """The same conversation, but texts of assistant, tools and whatever is learned are sentinels and the
    reasoning is gone.

    What the template writes around the sentinels is the template's own.
    """
    return [
        _twin(message, number) if message["role"] in ("assistant", "tool") or weights[number] else message
        for number, message in enumerate(messages)
    ]


def _twin(message: Message, number: int) -> Message:
    result = {key: value for key, value in message.items() if key not in REASONING_FIELDS}
    result["content"] = content_sentinel(number)
    if result.get("tool_calls"):
        calls = enumerate(result["tool_calls"])
        result["tool_calls"] = [_twin_call(call, call_sentinel(number, index)) for index, call in calls]
    return result


def _twin_call(call: dict[str, Any], sentinel: str) -> dict[str, Any]:
    inner = call.get("function", call)
    inner = {
        **inner,
        "name": inner["name"] + sentinel,
        "arguments": _replace_text(inner["arguments"], sentinel),
    }
    return {**call, "function": inner} if "function" in call else inner


def _replace_text(value: Any, sentinel: str) -> Any:
    if isinstance(value, str):
        return sentinel
    if isinstance(value, dict):
        return {key: _replace_text(item, sentinel) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_text(item, sentinel) for item in value]
    return value
