"""Content that is a list of parts: text, reasoning and tool calls, as OpenAI, Anthropic and others write them.

A template writes reasoning, then text, then tool calls. Parts in another order would say something else once
they are rendered, so they are refused; so is everything that is not text, and a part with a weight of its own.
"""

from dataclasses import dataclass, field
from typing import Any

from luthier.data.calls import calls_from_text
from luthier.errors import RowRefused

_TEXT = frozenset({"text", "input_text", "output_text"})
_REASONING = frozenset({"reasoning", "thinking"})
_CALL = frozenset({"tool_call", "tool_calls", "tool_use", "function_call"})
_MEDIA = ("image", "video", "audio", "input_image", "input_audio")


@dataclass
class Parts:
    """What a list of parts says together."""

    text: str | None = None
    reasoning: str | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)


def read_parts(parts: list[Any], place: str) -> Parts:
    """The parts of a message's content joined, each kind to its own.

    Raises:
        RowRefused: for a part that cannot be used, naming its number and type.
    """
    result = Parts()
    for number, part in enumerate(parts, start=1):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict):
            raise RowRefused(f"{place}: part {number} of its content is not an object with a `type`")
        _refuse_weight(part, f"{place}: part {number}")
        if kind in _TEXT:
            if result.calls:
                raise RowRefused(
                    f"{place}: part {number} is text after a tool call; templates write text first"
                )
            result.text = (result.text or "") + _text(part, kind, place)
        elif kind in _REASONING:
            if result.text is not None or result.calls:
                raise RowRefused(
                    f"{place}: part {number} is reasoning after what it leads to; templates write it first"
                )
            result.reasoning = (result.reasoning or "") + _text(part, kind, place)
        elif kind in _CALL:
            result.calls += calls_from_text(_call(part), f"{place}: part {number}")
        else:
            raise RowRefused(_unusable(kind, place))
    return result


def _text(part: dict[str, Any], kind: str, place: str) -> str:
    for name in ("text", "value", "content", kind):
        if isinstance(part.get(name), str):
            return part[name]
    shown = "a text part" if kind in _TEXT else "a reasoning part"
    raise RowRefused(f"{place} has {shown} without `text`")


def _call(part: dict[str, Any]) -> Any:
    if "value" in part:
        return part["value"]
    inner = next((part[name] for name in ("tool_call", "tool_calls", "function_call") if name in part), None)
    if inner is not None:
        return inner
    return {"arguments" if key == "input" else key: item for key, item in part.items() if key != "type"}


def _refuse_weight(part: dict[str, Any], place: str) -> None:
    for name in ("train", "training", "weight", "loss", "loss_weight"):
        if part.get(name) not in (None, True, 1):
            raise RowRefused(
                f"{place} has a `{name}` of its own; only whole messages can be weighted, so put it there"
            )


def _unusable(kind: Any, place: str) -> str:
    if isinstance(kind, str) and kind.startswith(_MEDIA):
        return f"{place} has a content part of type {kind!r}; only parts of text can be learned from so far"
    return (
        f"{place} has a content part of type {kind!r}; only parts of type 'text', 'reasoning' and 'tool_call' "
        "can be used"
    )
