"""A conversation: what one row of chat data says, checked before any template sees it.

Everything that is wrong with a row is found here or in the template, and refused with its reason
(`RowRefused`), so that it ends in the ledger and nowhere else. Messages are counted from 1 in the reasons.
"""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.errors import RowRefused

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
_OTHER_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
}
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Conversation:
    """Messages in order, the tools they may use, and which assistant messages are to be learned."""

    messages: list[Message]
    """Plain JSON objects with a `role`, a text `content` or none, and whatever else the template reads."""
    tools: list[Any] | None = None
    """Tool descriptions (JSON Schema) that the template shows to the model."""
    template_args: dict[str, Any] = field(default_factory=dict)
    """Variables for the template, for this row only."""
    learn: tuple[bool, ...] = ()
    """For each message, whether it is learned if the assistant wrote it. Empty: all of them are."""

    def learns(self, number: int) -> bool:
        """Whether the message at this index is a target."""
        wanted = self.learn[number] if self.learn else True
        return wanted and self.messages[number]["role"] == "assistant"

    def part(self, keep: Sequence[int]) -> "Conversation":
        """The same conversation with only the messages at these indices."""
        learn = tuple(self.learn[i] for i in keep) if self.learn else ()
        return Conversation([self.messages[i] for i in keep], self.tools, self.template_args, learn)


def describe(messages: Sequence[Message], number: int) -> str:
    """How reasons name a message: its place, counted from 1, and its role."""
    return f"message {number + 1} ({messages[number].get('role')})"


def conversation_from(
    messages: Any,
    tools: Any = None,
    template_args: Any = None,
    learn: Sequence[bool] | None = None,
) -> Conversation:
    """A checked conversation from what a row holds.

    A message may say `train: false` or `weight: 0`; it is then context and not learned. `learn` says the same
    from outside, one value a message; both must agree to learn. JSON text is accepted for `tools` and for the
    `arguments` of a tool call. A list of text parts becomes one text.

    Raises:
        RowRefused: with the reason, naming the message.
    """
    if isinstance(messages, str):
        messages = _from_json(messages, "messages")
    if not isinstance(messages, list):
        raise RowRefused(f"`messages` is {_kind(messages)}, not a list of messages")
    if not messages:
        raise RowRefused("the conversation is empty")
    checked = [_message(message, number) for number, message in enumerate(messages)]
    wanted = [_pop_learn(message, number) for number, message in enumerate(checked)]
    if learn is not None:
        wanted = [both and own for both, own in zip(learn, wanted, strict=True)]
    assistants = [i for i, message in enumerate(checked) if message["role"] == "assistant"]
    if not assistants:
        raise RowRefused("there is no assistant message, so there is nothing to learn")
    if not any(wanted[i] for i in assistants):
        raise RowRefused("all targets masked: every assistant message is marked as not to be learned")
    return Conversation(checked, _tools(tools), _template_args(template_args), tuple(wanted))


def _message(message: Any, number: int) -> Message:
    place = f"message {number + 1}"
    if not isinstance(message, dict):
        raise RowRefused(f"{place} is {_kind(message)}, not an object with `role` and `content`")
    role = message.get("role")
    if role is None:
        raise RowRefused(
            f"{place} has no `role`; its fields are {', '.join(sorted(map(str, message))) or 'none'}"
        )
    if role not in ROLES:
        raise RowRefused(f"{place} has the unknown role {role!r}{_role_hint(role)}")
    result = {str(key): value for key, value in message.items()}
    result["content"] = _content(message.get("content"), f"{place} ({role})")
    if message.get("tool_calls") is not None:
        if role != "assistant":
            raise RowRefused(f"{place} ({role}) has `tool_calls`; only an assistant message can call tools")
        result["tool_calls"] = _tool_calls(message["tool_calls"], place)
    for name in REASONING_FIELDS:
        if not isinstance(message.get(name), str | None):
            raise RowRefused(f"{place} ({role}) has a `{name}` that is {_kind(message[name])}, not text")
    if result["content"] is None and not _says_something(result):
        raise RowRefused(f"{place} ({role}) has neither text nor tool calls")
    return result


def _says_something(message: Message) -> bool:
    return bool(message.get("tool_calls")) or any(message.get(name) for name in REASONING_FIELDS)


def _role_hint(role: Any) -> str:
    if isinstance(role, str):
        near = _OTHER_NAMES.get(role.lower()) or next(
            iter(difflib.get_close_matches(role.lower(), ROLES, 1)), None
        )
        if near:
            return f"; did you mean {near!r}?"
    return f"; it must be one of {', '.join(ROLES)}"


def _content(content: Any, place: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowRefused(f"{place} has a content that is {_kind(content)}, not text")
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, dict) else None
            what = "a text part without `text`" if kind == "text" else f"a content part of type {kind!r}"
            raise RowRefused(f"{place} has {what}; only parts of type 'text' with a `text` can be used")
    return "".join(part["text"] for part in content)


def _tool_calls(calls: Any, place: str) -> list[Any]:
    calls = _from_json(calls, f"{place}: `tool_calls`") if isinstance(calls, str) else calls
    if not isinstance(calls, list):
        raise RowRefused(f"{place} has `tool_calls` that are {_kind(calls)}, not a list")
    result = []
    for index, call in enumerate(calls, start=1):
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise RowRefused(f"{place}: tool call {index} has no function `name`")
        arguments = inner.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _from_json(arguments or "{}", f"{place}: `arguments` of tool call {index}")
        if not isinstance(arguments, dict):
            raise RowRefused(
                f"{place}: `arguments` of tool call {index} is {_kind(arguments)}, not an object"
            )
        inner = {**inner, "arguments": arguments}
        result.append({**call, "function": inner} if "function" in call else inner)
    return result


def _pop_learn(message: Message, number: int) -> bool:
    train, weight = message.pop("train", None), message.pop("weight", None)
    if train is not None and not isinstance(train, bool):
        raise RowRefused(f"message {number + 1} has `train: {train!r}`; it must be true or false")
    if weight is not None and weight not in (0, 1):
        raise RowRefused(f"message {number + 1} has `weight: {weight!r}`; only 0 and 1 are possible")
    return train is not False and weight != 0


def _tools(tools: Any) -> list[Any] | None:
    if isinstance(tools, str):
        tools = _from_json(tools, "`tools`") if tools.strip() else None
    if not tools and tools in (None, [], {}):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowRefused(f"`tools` is {_kind(tools)}, not a list of objects")
    return tools


def _template_args(template_args: Any) -> dict[str, Any]:
    if template_args is None:
        return {}
    if not isinstance(template_args, dict):
        raise RowRefused(f"`chat_template_kwargs` is {_kind(template_args)}, not an object")
    return template_args


def _from_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as fault:
        raise RowRefused(f"{what} is text that is not JSON ({fault})") from fault


def _kind(value: Any) -> str:
    """The JSON word for a value's type, with its article."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
