"""What a chat template writes around messages, found by rendering it with marked ones.

Of each place (before a question, between question and answer, ...) one text is found, and nothing is believed of it:
whether they make the template's text again is tried afterwards (`proof.py`).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Render = Callable[..., str]
"""`render(messages, add_generation_prompt=..., tools=..., **variables)` gives the template's text."""

SYSTEM, ASKED, ANSWERED, AGAIN, THOUGHT = "qzSYSzq", "qzASKzq", "qzANSWERzq", "qzAGAINzq", "qzTHOUGHTzq"
RESULTS = ("qzRESULTONEzq", "qzRESULTTWOzq")
NAMES = ("qzNAMEONEzq", "qzNAMETWOzq")
VALUES = ("qzVALUEONEzq", "qzVALUETWOzq")

Part = str | tuple[str, str]
"""A text, or a place for something: its kind and the text between two of them."""


class Unlike(Exception):
    """The template does not write messages one after another in a way that is looked for; says which."""


@dataclass(frozen=True)
class Opening:
    """What is written before the first question's text: without anything, with a system message, with tools, both."""

    plain: tuple[Part, ...] = ()
    system: tuple[Part, ...] | None = None
    tools: tuple[Part, ...] | None = None
    both: tuple[Part, ...] | None = None

    def cases(self) -> Iterator[tuple[str, tuple[Part, ...]]]:
        """Each that is known, by its name."""
        for name in ("both", "system", "tools", "plain"):
            if (parts := getattr(self, name)) is not None:
                yield name, parts


@dataclass(frozen=True)
class Calls:
    """An answer's calls of tools, and the tools' results."""

    before: str | None
    """Between the answer's text and its first call; None: the text is left out where there are calls."""
    pieces: tuple[str, str, str]
    """Before a name, between name and arguments, after these."""
    between: str | None
    """Between two calls; None: there may be one only."""
    result_first: str
    """After the calls, before the first result's text."""
    result_next: str
    result_after: str
    as_json: bool
    """Whether a result is written as JSON."""


@dataclass(frozen=True)
class Shape:
    """The texts around messages."""

    start: Opening
    """At the very beginning."""
    question: Opening
    """Before the question that system message and tools stand at; often the same with and without them."""
    at: str
    """Which question that is: first or last."""
    asked: str
    """Before any other question."""
    question_after: str
    answer: str
    """Before an answer's text."""
    answer_after: str
    prompt: str
    """What asks for an answer, after the last question or result."""
    thinking: tuple[str, str] | None = None
    """Around thoughts of the answer under way, before its text."""
    no_thinking: str = ""
    """What follows the prompt where thinking is switched off."""
    calls: Calls | None = None


def text_shape(render: Render) -> Shape:
    """The texts around system messages, questions and answers. Raises Unlike."""
    question, answer, again = _user(ASKED), _assistant(ANSWERED), _user(AGAIN)
    head, end = _cut(render([question], add_generation_prompt=True), ASKED)
    same, middle, next_one, last = _cut(
        render([question, answer, again], add_generation_prompt=True), ASKED, ANSWERED, AGAIN
    )
    if (head, end) != (same, last):
        raise Unlike("it writes a question differently when others follow")
    # some templates end a conversation that is over in a way of their own
    question_after = _shared(_cut(render([question]), ASKED)[1], middle)
    answer_after = _shared(_cut(render([question, answer]), ASKED, ANSWERED)[2], next_one)
    shape = Shape(
        start=Opening((_without(head, _without_start(next_one, answer_after), at_end=True),)),
        question=Opening((_without_start(next_one, answer_after),)),
        at="first",
        asked=_without_start(next_one, answer_after),
        question_after=question_after,
        answer=_without_start(middle, question_after),
        answer_after=answer_after,
        prompt=_without_start(end, question_after),
    )
    return _with_openings(render, shape, None)


def with_thinking(render: Render, shape: Shape) -> Shape:
    """The same, with thoughts: how they are written, and what switches them off. Raises Unlike if it knows none."""
    question = _user(ASKED)
    off = render([question], add_generation_prompt=True, enable_thinking=False)
    on = render([question], add_generation_prompt=True, enable_thinking=True)
    answer = {**_assistant(ANSWERED), "reasoning_content": THOUGHT, "thinking": THOUGHT}
    text = render([question, answer])
    if THOUGHT not in text or off == on:
        raise Unlike("it has no thoughts that can be switched off")
    if not off.startswith(on) or _cut(on, ASKED)[1] != shape.question_after + shape.prompt:
        raise Unlike("it asks for thoughts in a way of its own")
    _, before, between, _ = _cut(text, ASKED, THOUGHT, ANSWERED)
    opening = _without_start(before, shape.question_after)
    return replace(
        shape,
        thinking=(_without_start(opening, shape.answer), between),
        no_thinking=off.removeprefix(on),
    )


def with_tools(render: Render, shape: Shape) -> Shape:
    """The same, with tools, calls and results. Raises Unlike."""
    shape = _with_openings(render, shape, _tools())
    return replace(shape, calls=_calls(render, shape))


def _with_openings(render: Render, shape: Shape, tools: list[Any] | None) -> Shape:
    """The shape with what it begins with when there are a system message or `tools`."""
    for name, with_system in (("system", True),) if tools is None else (("tools", False), ("both", True)):
        if name == "both" and shape.start.system is None:
            continue
        first = _head(render, with_system, tools, more=False)
        if first is None:
            if tools is not None:
                raise Unlike("it does not write tools before the first question")
            continue
        several = _head(render, with_system, tools, more=True)
        shape = _placed(shape, name, first, several)
    return shape


def _placed(shape: Shape, name: str, first: list[Part], several: list[Part] | None) -> Shape:
    """The shape with this opening in the place that it belongs to."""
    asked = shape.asked
    if first == several:
        last, own = first[-1], ()
        if isinstance(last, str) and last.endswith(asked):
            first, own = [*first[:-1], last.removesuffix(asked)], (asked,)
        return replace(
            shape,
            start=replace(shape.start, **{name: _merged(first)}),
            question=replace(shape.question, **{name: own}),
        )
    plain = shape.start.plain[0]
    assert isinstance(plain, str)
    if not isinstance(first[0], str) or not first[0].startswith(plain):
        raise Unlike("it begins in another way where there is a system message or tools")
    own = _merged([first[0].removeprefix(plain), *first[1:]])
    if shape.question.system == ():
        raise Unlike("system message and tools stand at different questions")
    return replace(
        shape,
        at="last",
        start=replace(shape.start, **{name: shape.start.plain}),
        question=replace(shape.question, **{name: own}),
    )


def _head(render: Render, system: bool, tools: list[Any] | None, *, more: bool) -> list[Part] | None:
    """What stands before the question that the system message and the tools stand at; None if they are not written.

    With `more` there is an answered question before it or behind it.
    """
    messages = [_system(SYSTEM)] if system else []
    messages.append(_user(ASKED))
    if more:
        messages += [_assistant(ANSWERED), _user(AGAIN)]
    try:
        text = render(messages, add_generation_prompt=True, tools=tools)
    except Exception:
        return None
    before = _cut(text, ASKED)[0]
    if more and (SYSTEM not in before if system else NAMES[0] not in before):
        return None
    return _parts(before, system, tools)


def _parts(text: str, system: bool, tools: list[Any] | None) -> list[Part] | None:
    """The text in parts, with places for the system message and the tools."""
    parts: list[Part] = [text]
    if system:
        if text.count(SYSTEM) != 1:
            return None
        before, after = text.split(SYSTEM)
        parts = [before, ("system", ""), after]
    if tools is None:
        return parts
    for number, part in enumerate(parts):
        if isinstance(part, str) and NAMES[0] in part:
            return [*parts[:number], *_tools_in(part, tools), *parts[number + 1 :]]
    return None


def _tools_in(text: str, tools: list[Any]) -> list[Part]:
    """The text around the tools as JSON: each by itself, each one's function, or all as a list."""
    spelled = [
        lambda value, indent=indent: json.dumps(value, ensure_ascii=False, indent=indent)
        for indent in (None, 2, 4)
    ]
    for write in spelled:
        if (whole := write(tools)) in text:
            before, after = text.split(whole, 1)
            return [before, ("list", ""), after]
        for kind, values in (("tool", tools), ("function", [tool["function"] for tool in tools])):
            one, other = (write(value) for value in values)
            if one in text and other in text:
                before, rest = text.split(one, 1)
                between, after = rest.split(other, 1)
                return [before, (kind, between), after]
    raise Unlike("it does not write tools as JSON")


def _calls(render: Render, shape: Shape) -> Calls:
    """How calls and results are written; of templates that take one call at a time, that one."""
    question, tools = _user(ASKED), _tools()

    def after_question(number: int, said: str, *marks: str) -> list[str]:
        called = [
            {"type": "function", "function": {"name": name, "arguments": {"of": value}}}
            for name, value in zip(NAMES[:number], VALUES, strict=False)
        ]
        results = [
            {"role": "tool", "name": n, "content": text} for n, text in zip(NAMES, RESULTS, strict=True)
        ]
        answer = {"role": "assistant", "content": said, "tool_calls": called}
        text = render([question, answer, *results[:number]], add_generation_prompt=True, tools=tools)
        holes = [
            hole
            for name, value in zip(NAMES, VALUES, strict=True)
            for hole in (name, json.dumps({"of": value}))
        ]
        return _cut(text[text.index(ASKED) :], ASKED, *marks, *holes[: 2 * number], *RESULTS[:number])[1:]

    opening, inner, rest, end = after_question(1, "")
    opening = _without_start(_without_start(opening, shape.question_after), shape.answer)
    try:
        _, again, between, same, _, following, _ = after_question(2, "")
    except Exception:
        again, between, same, following = inner, None, inner, ""
    if not again == inner == same:
        raise Unlike("it writes the first call in another way than the others")
    try:
        before = _without(after_question(1, ANSWERED, ANSWERED)[1], opening, at_end=True)
    except Unlike:
        before = None
    spelled = rest.endswith('"') and end.startswith('"')
    if spelled:
        rest, end, following = rest[:-1], end[1:], following[1:-1]
    # what ends a call and what ends all of them are told apart by what stands between two
    after = rest if between is None else _shared(between, rest)
    return Calls(
        before=before,
        pieces=(opening, inner, after),
        between=None if between is None else _without(between.removeprefix(after), opening, at_end=True),
        result_first=rest.removeprefix(after),
        result_next=following,
        result_after=_without(end, shape.prompt, at_end=True),
        as_json=spelled,
    )


def _tools() -> list[dict[str, Any]]:
    """Two tools with marked names."""
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": "what it does",
                "parameters": {
                    "type": "object",
                    "properties": {"of": {"type": "string"}},
                    "required": ["of"],
                },
            },
        }
        for name in NAMES
    ]


def _system(text: str) -> Mapping[str, Any]:
    return {"role": "system", "content": text}


def _user(text: str) -> Mapping[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Mapping[str, Any]:
    return {"role": "assistant", "content": text}


def _cut(text: str, *marks: str) -> list[str]:
    """The texts around marks that each stand there once, in this order. Raises Unlike."""
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            raise Unlike(
                f"it writes {'one part of a message more than once' if mark in text else 'messages in another order'}"
            )
        before, text = text.split(mark)
        parts.append(before)
    return [*parts, text]


def _without_start(text: str, start: str) -> str:
    return _without(text, start, at_end=False)


def _without(text: str, part: str, *, at_end: bool) -> str:
    """The text without a part that it must begin or end with. Raises Unlike."""
    if not (text.endswith(part) if at_end else text.startswith(part)):
        raise Unlike("it writes the same message in different ways")
    return text.removesuffix(part) if at_end else text.removeprefix(part)


def _shared(one: str, other: str) -> str:
    """What both begin with, without a token's first letter."""
    pairs = enumerate(zip(one, other, strict=False))
    length = next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
    return one[:length] if length == len(one) else one[:length].removesuffix("<")


def _merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Without empty texts."""
    return tuple(part for part in parts if part != "")
