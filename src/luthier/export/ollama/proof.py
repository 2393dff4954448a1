"""Whether a template in Go's language writes what the model's own template writes, tried with random conversations.

Ollama joins messages of one role that follow each other, gives system messages apart, and spells tools and arguments as
JSON without spaces, with the fields of a tool in an order of its own; the last is the only difference that is not
looked at here, so tools are compared as JSON.
"""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.export.ollama.go import GoTemplate, to_json
from luthier.export.ollama.shape import Render, Shape

TRIES = 60
TEXT = """the a day of <b>7</b> {{ name }} {% if x %} "quoted" it's naïve 日本語 😀 \\n $x {curly} [list] & so # on"""
WORDS = tuple(TEXT.split(" "))


def difference(source: str, shape: Shape, render: Render, *, seed: int = 0, tries: int = TRIES) -> str | None:
    """The first conversation that the two write differently, with both texts; None if there is none."""
    template = GoTemplate(source)
    draw = random.Random(seed)
    for _ in range(tries):
        chat = _chat(draw, shape)
        expected = _spelled_as_go(
            render(chat["messages"], add_generation_prompt=True, **_variables(chat)), chat
        )
        found = template.run(ollama_values(chat["messages"], chat["tools"], chat["think"]))
        if found != expected:
            return f"of {json.dumps(chat, ensure_ascii=False)} the model's template makes {expected!r}, Go's {found!r}"
    return None


def ollama_values(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, think: bool | None = None
) -> dict[str, Any]:
    """What Ollama hands to a template for a request."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        if joined and joined[-1]["Role"] == message["role"] != "tool":
            joined[-1]["Content"] += "\n\n" + message["content"]
            continue
        calls = [
            {"Function": {"Name": call["function"]["name"], "Arguments": call["function"]["arguments"]}}
            for call in message.get("tool_calls") or ()
        ]
        joined.append(
            {
                "Role": message["role"],
                "Content": message["content"],
                "Thinking": message.get("reasoning_content", ""),
                "ToolCalls": calls,
            }
        )
    told = [
        {"type": tool["type"], "function": tool["function"], "Function": tool["function"]}
        for tool in tools or ()
    ]
    return {
        "System": "\n\n".join(message["content"] for message in messages if message["role"] == "system"),
        "Messages": joined,
        "Tools": [_Tool(tool) for tool in told],
        "Think": bool(think),
        "IsThinkSet": think is not None,
        "Response": "",
    }


class _Tool(dict[str, Any]):
    """A tool, whose field Function is reached by Go's name and is not written twice as JSON."""

    def __init__(self, values: Mapping[str, Any]):
        super().__init__({key: value for key, value in values.items() if key != "Function"})

    def get(self, key: str, default: Any = None) -> Any:
        """As of a struct."""
        return super().get(key[:1].lower() + key[1:], default)


def _chat(draw: random.Random, shape: Shape) -> dict[str, Any]:
    """A conversation that ends with a question or with results, with what the shape has."""
    messages: list[dict[str, Any]] = []
    if shape.start.system is not None and draw.random() < 0.6:
        messages.append({"role": "system", "content": _words(draw)})
    with_tools = shape.calls is not None and draw.random() < 0.7
    turns = draw.randint(1, 3)
    for turn in range(turns):
        messages.append({"role": "user", "content": _words(draw)})
        under_way = turn == turns - 1
        if with_tools and draw.random() < 0.6:
            messages += _called(draw, shape, think=under_way and shape.thinking is not None)
        if not under_way:
            messages.append({"role": "assistant", "content": _words(draw)})
    think = draw.choice((None, True, False)) if shape.no_thinking else None
    return {"messages": messages, "tools": _tools(draw) if with_tools else None, "think": think}


def _called(draw: random.Random, shape: Shape, *, think: bool) -> list[dict[str, Any]]:
    calls = [
        {
            "type": "function",
            "function": {"name": f"look_{n}", "arguments": {"of": _words(draw), "n": draw.randint(0, 9)}},
        }
        for n in range(1 if shape.calls is None or shape.calls.between is None else draw.randint(1, 3))
    ]
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": draw.choice(("", _words(draw))),
        "tool_calls": calls,
    }
    if think and draw.random() < 0.5:
        answer["reasoning_content"] = _words(draw)
    results = [{"role": "tool", "name": call["function"]["name"], "content": _words(draw)} for call in calls]
    return [answer, *results]


def _tools(draw: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "function": {
                "name": f"look_{n}",
                "description": _words(draw),
                "parameters": {
                    "type": "object",
                    "properties": {"of": {"type": "string"}},
                    "required": ["of"],
                },
            },
        }
        for n in range(draw.randint(1, 3))
    ]


def _words(draw: random.Random) -> str:
    """A text without white space around it."""
    text = draw.choice((" ", "\n")).join(draw.choices(WORDS, k=draw.randint(1, 6)))
    return text.replace("naïve", "naïve\n\n  two", 1) if draw.random() < 0.2 else text


def _variables(chat: Mapping[str, Any]) -> dict[str, Any]:
    found = {"tools": chat["tools"]} if chat["tools"] else {}
    return found if chat["think"] is None else {**found, "enable_thinking": chat["think"]}


def _spelled_as_go(text: str, chat: Mapping[str, Any]) -> str:
    """The text with JSON of tools and arguments as Go writes it."""
    calls = [call for message in chat["messages"] for call in message.get("tool_calls", ())]
    tools = chat["tools"] or []
    values: list[Any] = [tools, *tools, *(tool["function"] for tool in tools)]
    values += [call["function"]["arguments"] for call in calls]
    values += [message["content"] for message in chat["messages"] if message["role"] == "tool"]
    for value in values:
        for indent in (None, 2, 4):
            text = text.replace(json.dumps(value, ensure_ascii=False, indent=indent), to_json(value))
    return text
