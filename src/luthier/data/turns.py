"""Messages as data sets spell them, turned into `{"role": …, "content": …}`.

ShareGPT writes `{"from": "human", "value": …}`; a set may have names of its own (`data.sets[].tags`). A turn
whose role is that of a tool call becomes an assistant message with `tool_calls`.
"""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.data.calls import calls_from_text
from luthier.data.conversation import CALL, ROLES, SHAREGPT_ROLES
from luthier.data.values import from_json, in_words
from luthier.errors import DataError, RowRefused

_FIELDS = {
    "role": "role",
    "content": "content",
    "reasoning": "reasoning_content",
    "tool_calls": "tool_calls",
    "train": "train",
    "weight": "weight",
}
_THOUGHT = re.compile(r"\s*(<think>.*?</think>)\s*", re.DOTALL)


@dataclass(frozen=True)
class Tags:
    """Names that one data set uses inside its messages."""

    fields: Mapping[str, str] = field(default_factory=dict)
    """Our name of a field by the set's own."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Our name of a role by the set's own."""


def tags_from(given: Mapping[str, str]) -> Tags:
    """The tags of a data set: our names (`role`, `user`, `tool_call` …) to its own; of roles several, with commas.

    Raises:
        DataError: for a name that is none of ours, with the nearest one.
    """
    known = [*_FIELDS, *ROLES, CALL]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"it must be one of {', '.join(known)}"
            raise DataError(f"`tags` has the unknown name `{name}`; {hint}")
    fields = {own: _FIELDS[name] for name, own in given.items() if name in _FIELDS}
    roles = {
        own.strip(): name
        for name, several in given.items()
        if name not in _FIELDS
        for own in several.split(",")
    }
    return Tags(fields, roles)


def read_turns(messages: Any, tags: Tags, column: str, sharegpt: bool) -> list[Any]:
    """The messages of a column, with our names for fields and roles; what they hold is not checked yet.

    Args:
        messages: what the column holds; JSON text is read.
        tags: the names of the data set.
        column: its name, for reasons.
        sharegpt: whether ShareGPT's names of roles mean what they do there even where the field is `role`.

    Raises:
        RowRefused: if it is no list, or a call in it cannot be read.
    """
    if isinstance(messages, str):
        messages = from_json(messages, column)
    if not isinstance(messages, list):
        raise RowRefused(f"`{column}` is {in_words(messages)}, not a list of messages")
    return [_turn(message, number, tags, sharegpt) for number, message in enumerate(messages, start=1)]


def one_or_more_turns(messages: Any, tags: Tags, column: str, role: str) -> list[Any]:
    """Messages given as one text (of this role), one message, or a list of messages, also as JSON text.

    Raises:
        RowRefused: if it is none of these.
    """
    if isinstance(messages, str):
        listed = turns_in_text(messages)
        if listed is None:
            return [{"role": role, "content": messages}]
        messages = listed
    if isinstance(messages, dict):
        messages = [messages]
    if not isinstance(messages, list):
        raise RowRefused(f"`{column}` is neither text nor a list of messages")
    if not messages:
        raise RowRefused(f"`{column}` is an empty list")
    return read_turns(messages, tags, column, sharegpt=True)


def turns_in_text(text: str) -> list[Any] | None:
    """The messages that a text is JSON of (a cell of CSV, say); None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, list) or not values:
        return None
    are_turns = all(isinstance(value, dict) and ("role" in value or "from" in value) for value in values)
    return values if are_turns else None


def _turn(message: Any, number: int, tags: Tags, sharegpt: bool) -> Any:
    if not isinstance(message, dict):
        return message
    if tags.fields:
        hidden = {name for name in tags.fields.values() if name not in tags.fields}
        message = {
            tags.fields.get(k, k): v for k, v in message.items() if k in tags.fields or k not in hidden
        }
    if "from" in message and "role" not in message:
        message = {{"from": "role", "value": "content"}.get(k, k): v for k, v in message.items()}
        sharegpt = True
    role = message.get("role")
    if not isinstance(role, str):
        return message
    known = sharegpt or role == "function"  # which OpenAI called the results of tools before
    ours = tags.roles.get(role) or (SHAREGPT_ROLES.get(role.lower()) if known else None)
    if ours == CALL:
        return _call_turn(message, f"message {number} ({role})")
    return message if ours is None or ours == role else {**message, "role": ours}


def _call_turn(message: dict[str, Any], place: str) -> dict[str, Any]:
    """An assistant's message with the calls of a turn that holds nothing else, but for a thought before them."""
    content, before = message.get("content"), None
    if isinstance(content, str) and (thought := _THOUGHT.match(content)):
        content, before = content[thought.end() :], thought[1]
    calls = calls_from_text(content, place)
    return {**message, "role": "assistant", "content": before, "tool_calls": calls}
