"""A conversation: what one row of chat data says, checked before any template sees it.

Everything that is wrong with a row is found here or in the template, and refused with its reason
(`RowRefused`), so that it ends in the ledger and nowhere else. Messages are counted from 1 in the reasons.
The order of roles is the row's own: several questions in a row, a system message in the middle, results of
tools at the end all stay as they are.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data.calls import calls_from_text, checked_calls, checked_tools
from luthier.data.parts import read_parts
from luthier.data.values import from_json, in_words, number_in
from luthier.errors import RowRefused

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
CALL = "tool_call"
SHAREGPT_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    "function_call": CALL,
    "function-call": CALL,
    CALL: CALL,
    **{role: role for role in ROLES},
}
"""Our roles by the names that ShareGPT and its kin use."""
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_UNREAD_MASKS = ("training", "trainable", "mask", "masked", "train_detail", "training_detail")
NO_ANSWER = "there is no assistant message, so there is nothing to learn"


@dataclass(frozen=True)
class Conversation:
    """Messages in order, the tools they may use, and how much each message counts."""

    messages: list[Message]
    """Plain JSON objects with a `role`, a text `content` or none, and whatever else the template reads."""
    tools: list[Any] | None = None
    """Tool descriptions (JSON Schema) that the template shows to the model."""
    template_args: dict[str, Any] = field(default_factory=dict)
    """Variables for the template, for this row only."""
    weights: tuple[float, ...] = ()
    """For each message, its weight where it is a target: 0 is not learned. Empty: all weigh 1."""

    def weight(self, number: int) -> float:
        """How much the message at this index counts if it is a target."""
        return self.weights[number] if self.weights else 1.0

    def learns(self, number: int) -> bool:
        """Whether the message at this index is an answer to be learned."""
        return self.weight(number) > 0 and self.messages[number]["role"] == "assistant"

    def part(self, keep: Sequence[int]) -> "Conversation":
        """The same conversation with only the messages at these indices."""
        weights = tuple(self.weights[i] for i in keep) if self.weights else ()
        return Conversation([self.messages[i] for i in keep], self.tools, self.template_args, weights)


def describe(messages: Sequence[Message], number: int) -> str:
    """How reasons name a message: its place, counted from 1, and its role."""
    return f"message {number + 1} ({messages[number].get('role')})"


def conversation_from(
    messages: Any,
    tools: Any = None,
    template_args: Any = None,
    weights: Sequence[float] | None = None,
) -> Conversation:
    """A checked conversation from what a row holds.

    A message may say `train: false`, or have a `weight` or `loss_weight`: 0 makes it context that is not
    learned, 0.5 makes its tokens count half. `weights` says the same from outside, one value a message; the two
    are multiplied. JSON text is accepted for `messages`, `tools` and for the `arguments` of a tool call. A list
    of parts becomes one text, with reasoning and tool calls where messages have them.

    Raises:
        RowRefused: with the reason, naming the message.
    """
    checked, own = checked_messages(messages)
    if weights is not None:
        own = [outside * inside for outside, inside in zip(weights, own, strict=True)]
    assistants = [i for i, message in enumerate(checked) if message["role"] == "assistant"]
    if not assistants:
        raise RowRefused(NO_ANSWER)
    if not any(own[i] for i in assistants):
        raise RowRefused("all targets masked: every assistant message is marked as not to be learned")
    return Conversation(checked, checked_tools(tools), checked_template_args(template_args), tuple(own))


def checked_messages(messages: Any) -> tuple[list[Message], list[float]]:
    """The messages of a row, checked, and the weight that each one gives itself. Raises RowRefused."""
    if isinstance(messages, str):
        messages = from_json(messages, "messages")
    if not isinstance(messages, list):
        raise RowRefused(f"`messages` is {in_words(messages)}, not a list of messages")
    if not messages:
        raise RowRefused("the conversation is empty")
    checked = [_message(message, number) for number, message in enumerate(messages)]
    return checked, [_pop_weight(message, number) for number, message in enumerate(checked)]


def checked_template_args(template_args: Any) -> dict[str, Any]:
    """Variables for the template. Raises RowRefused if they are no object."""
    if isinstance(template_args, str) and template_args.lstrip().startswith("{"):
        template_args = from_json(template_args, "`chat_template_kwargs`")
    if template_args is None or template_args == "":
        return {}
    if not isinstance(template_args, dict):
        raise RowRefused(f"`chat_template_kwargs` is {in_words(template_args)}, not an object")
    return template_args


def _message(message: Any, number: int) -> Message:
    place = f"message {number + 1}"
    if not isinstance(message, dict):
        raise RowRefused(f"{place} is {in_words(message)}, not an object with `role` and `content`")
    role = message.get("role")
    if role is None:
        raise RowRefused(
            f"{place} has no `role`; its fields are {', '.join(sorted(map(str, message))) or 'none'}"
        )
    if role not in ROLES:
        raise RowRefused(f"{place} has the unknown role {role!r}{_role_hint(role)}")
    result = {str(key): value for key, value in message.items()}
    _read_content(result, f"{place} ({role})")
    if result.get("function_call") is not None:
        call = calls_from_text(result.pop("function_call"), f"{place} ({role})")
        result["tool_calls"] = [*call, *(result.get("tool_calls") or [])]
    if result.get("tool_calls") is not None:
        if role != "assistant":
            raise RowRefused(f"{place} ({role}) has `tool_calls`; only an assistant message can call tools")
        result["tool_calls"] = checked_calls(result["tool_calls"], place)
    for name in REASONING_FIELDS:
        if not isinstance(result.get(name), str | None):
            raise RowRefused(f"{place} ({role}) has a `{name}` that is {in_words(result[name])}, not text")
    if result["content"] is None and not _says_something(result):
        raise RowRefused(f"{place} ({role}) has neither text nor tool calls")
    return result


def _says_something(message: Message) -> bool:
    return bool(message.get("tool_calls")) or any(message.get(name) for name in REASONING_FIELDS)


def _role_hint(role: Any) -> str:
    if isinstance(role, str):
        known = SHAREGPT_ROLES.get(role.lower())
        near = known or next(iter(difflib.get_close_matches(role.lower(), ROLES, 1)), None)
        if near == CALL:
            return "; put the call into the `tool_calls` of an assistant message"
        if near:
            return f"; did you mean {near!r}?"
    return f"; it must be one of {', '.join(ROLES)}"


def _read_content(message: Message, place: str) -> None:
    """Makes the content a text or None; what its parts say besides goes to fields of the message."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        message["content"] = content
        return
    if not isinstance(content, list):
        hint = "; write it as JSON text" if message["role"] == "tool" and isinstance(content, dict) else ""
        raise RowRefused(f"{place} has a content that is {in_words(content)}, not text{hint}")
    parts = read_parts(content, place)
    calls = parts.calls or message.get("tool_calls")
    message["content"] = "" if parts.text is None and not calls else parts.text
    if parts.reasoning is not None:
        if given := next((name for name in REASONING_FIELDS if message.get(name)), None):
            raise RowRefused(f"{place} has reasoning both in its content and in `{given}`")
        message["reasoning_content"] = parts.reasoning
    if parts.calls:
        if message.get("tool_calls"):
            raise RowRefused(f"{place} has tool calls both in its content and in `tool_calls`")
        message["tool_calls"] = parts.calls


def _pop_weight(message: Message, number: int) -> float:
    """What a message says about its own weight, the products of all ways to say it."""
    for name in _UNREAD_MASKS:
        if message.get(name) is not None:
            raise RowRefused(
                f"message {number + 1} has `{name}`, which may say what is learned; {_mask_hint(name)}"
            )
    result = 1.0
    for name in ("train", "loss"):
        own = message.pop(name, None)
        if own is not None and not isinstance(own, bool):
            raise RowRefused(f"message {number + 1} has `{name}: {own!r}`; it must be true or false")
        result *= own is not False
    for name in ("weight", "loss_weight"):
        own = message.pop(name, None)
        if own is None:
            continue
        weight = number_in(own, f"message {number + 1}: its `{name}`")
        if weight < 0:
            raise RowRefused(f"message {number + 1} has `{name}: {own!r}`; a weight is 0 or more")
        result *= weight
    return result


def _mask_hint(name: str) -> str:
    if name.endswith("detail"):
        return "only whole messages can be weighted: give the message `train` or `weight`"
    if name.startswith("mask"):
        return "write `train: false` where it is true, and remove it"
    return f"if true means learned, set `tags: {{train: {name}}}`"
