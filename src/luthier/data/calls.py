"""Tool calls of an assistant's message, and the tools themselves, checked."""

from typing import Any

from luthier.data.values import from_json, in_words
from luthier.errors import RowRefused


def checked_calls(calls: Any, place: str) -> list[Any]:
    """Tool calls whose arguments are objects; JSON text is read. Raises RowRefused, naming the call.

    `{"name": …, "arguments": …}` and `{"type": "function", "function": {…}}` stay as they are, but for that.
    """
    calls = from_json(calls, f"{place}: `tool_calls`") if isinstance(calls, str) else calls
    if not isinstance(calls, list):
        raise RowRefused(f"{place} has `tool_calls` that are {in_words(calls)}, not a list")
    return [_checked(call, place, number) for number, call in enumerate(calls, start=1)]


def _checked(call: Any, place: str, number: int) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RowRefused(f"{place}: tool call {number} has no function `name`")
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        arguments = from_json(arguments or "{}", f"{place}: `arguments` of tool call {number}")
    if not isinstance(arguments, dict):
        raise RowRefused(
            f"{place}: `arguments` of tool call {number} is {in_words(arguments)}, not an object"
        )
    inner = {**inner, "arguments": arguments}
    return {**call, "function": inner} if "function" in call else inner


def calls_from_text(value: Any, place: str) -> list[dict[str, Any]]:
    """The calls that one text (or object) describes: `{"name": …, "arguments": …}` or a list of these.

    They come in OpenAI's form, `{"type": "function", "function": {"name": …, "arguments": {…}}}`.

    Raises:
        RowRefused: if it is not JSON, or not calls.
    """
    if isinstance(value, str):
        value = from_json(value, f"{place}: the call")
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise RowRefused(f"{place}: the call is {in_words(value)}, not an object with `name` and `arguments`")
    return [_wrapped(call) for call in checked_calls(value, place)]


def _wrapped(call: dict[str, Any]) -> dict[str, Any]:
    if "function" in call:
        return {"type": "function", **call}
    own = {key: item for key, item in call.items() if key not in ("id", "type")}
    return {**{key: call[key] for key in ("id",) if key in call}, "type": "function", "function": own}


def checked_tools(tools: Any) -> list[Any] | None:
    """Descriptions of tools: a list of objects, or JSON text of one. Nothing, or an empty one, is None.

    Raises:
        RowRefused: if it is anything else.
    """
    if isinstance(tools, str):
        tools = from_json(tools, "`tools`") if tools.strip() else None
    if not tools and tools in (None, [], {}):
        return None
    if isinstance(tools, list):
        tools = [
            from_json(tool, f"tool {number} of `tools`")
            if isinstance(tool, str) and tool.lstrip().startswith("{")
            else tool
            for number, tool in enumerate(tools, start=1)
        ]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowRefused(f"`tools` is {in_words(tools)}, not a list of objects")
    return tools


def wrapped_tools(tools: Any) -> list[Any] | None:
    """The same in OpenAI's form: what is bare `{"name": …, "parameters": …}` becomes a function."""
    checked = checked_tools(tools)
    return checked and [
        {"type": "function", "function": tool} if "name" in tool and "function" not in tool else tool
        for tool in checked
    ]
