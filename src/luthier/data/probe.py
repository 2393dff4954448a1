"""What a template writes around messages, found by asking it once with messages that are only sentinels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from luthier.data.conversation import Message
from luthier.data.form import MAX_MESSAGES, SENTINEL, Form, adapt, call_sentinel, content_sentinel, owner
from luthier.data.marking import Marked
from luthier.data.template import TemplateProgram
from luthier.errors import RowRefused

_REASON = call_sentinel(MAX_MESSAGES)
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "call",
        "description": "calls",
        "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "a key"}}},
    },
}
"""A tool for templates that do not work without one."""
_PLAIN = ("user", "assistant", "user", "assistant")


@dataclass(frozen=True)
class Literals:
    """A template's own text around an assistant's turn."""

    form: Form
    generation: str
    """What the generation prompt adds at the end of a conversation."""
    sides: tuple[tuple[str, str], ...]
    """What stands before and after a plain answer, first in the history and then as the last turn."""
    after: str
    """What follows on both of these turns, outside of them."""
    text: str
    """A whole conversation of sentinels, to see which added tokens the template writes."""
    in_loop: bool
    """Whether messages are found by the loop over them; if not, the `{% generation %}` blocks are used."""
    writes_reasoning: bool
    """Whether `reasoning_content` has a place."""
    writes_calls: bool
    """Whether `tool_calls` have a place."""

    @property
    def headers(self) -> tuple[str, ...]:
        """What stands before a plain answer."""
        return tuple(before for before, _ in self.sides)

    @property
    def ending(self) -> str:
        """What stands after a plain answer that is the last turn."""
        return self.sides[-1][1] if self.sides else ""


def ask(program: TemplateProgram, variables: dict[str, Any]) -> Literals:
    """The template's literals for these variables.

    Raises:
        RowRefused: if no form of messages gives a text in which the assistant's part can be found. The caller
            decides whether that concerns one row (its own variables) or the whole template.
    """
    refusals: list[str] = []
    for parts, system in product((False, True), (False, True)):
        roles = ("system", *_PLAIN) if system else _PLAIN
        form = Form(parts=parts)
        try:
            marked = program.render_marked(_messages(roles, form), variables)
        except RowRefused as refusal:
            refusals.append(str(refusal))
            continue
        last = len(roles) - 1
        if any(content_sentinel(number) not in marked.text for number in (last - 2, last)):
            refusals.append("the chat template leaves out the assistant's text")
            continue
        return _literals(program, variables, marked, roles, form)
    raise RowRefused(refusals[0])


def _literals(
    program: TemplateProgram, variables: dict[str, Any], marked: Marked, roles: Sequence[str], form: Form
) -> Literals:
    last = len(roles) - 1
    around = [split_at_sentinel(marked, number) for number in (last - 2, last)]
    in_loop = all(sides is not None for sides in around)
    if not in_loop and len(marked.generations) != 2:
        raise RowRefused(
            "the chat template does not write its messages in a loop over them and has no {% generation %} "
            "block, so the assistant's part of the text cannot be found; "
            "give a template that has one in data.template"
        )
    sides = [side for side in around if side is not None] if in_loop else []
    if any(SENTINEL.search(after) for _, after in sides):
        raise RowRefused("the chat template writes other messages into the assistant's turn")
    form_of_calls = _form_of_calls(program, variables, roles[:-2], form)
    return Literals(
        form=form_of_calls or form,
        generation=_generation(program, variables, roles[:-3], form),
        sides=tuple(sides),
        after=_after(marked, last) if in_loop else "",
        text=marked.text,
        in_loop=in_loop,
        writes_reasoning=_writes_reasoning(program, variables, roles[:-2], form_of_calls or form),
        writes_calls=form_of_calls is not None,
    )


def split_at_sentinel(marked: Marked, number: int, *, calls: bool = False) -> tuple[str, str] | None:
    """What a message's region holds before the first and after the last of its sentinels; None if none is there.

    With `calls`, those of its tool calls count too.
    """
    regions = marked.of(number)
    if len(regions) != 1:
        return None
    text = marked.text[regions[0].start : regions[0].end]
    found = [one for one in SENTINEL.finditer(text) if owner(one) in ((number, False), (number, calls))]
    return (text[: found[0].start()], text[found[-1].end() :]) if found else None


def common_start(first: str, second: str) -> str:
    """The longest text that both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))]


def _messages(roles: Iterable[str], form: Form) -> list[Message]:
    return adapt([{"role": role, "content": content_sentinel(i)} for i, role in enumerate(roles)], form)


def _after(marked: Marked, last: int) -> str:
    """What follows both on an answer in the history and on the last one."""
    history, end = (marked.text[marked.of(number)[0].end :] for number in (last - 2, last))
    return common_start(history, end)


def _generation(program: TemplateProgram, variables: dict[str, Any], roles: Sequence[str], form: Form) -> str:
    """What follows the user's message when a generation prompt is asked for and not otherwise."""
    messages = _messages(roles, form)
    with_prompt = program.render_marked(messages, {**variables, "add_generation_prompt": True})
    without = program.render(messages, variables)
    regions = with_prompt.of(len(messages) - 1)
    if not regions:
        return with_prompt.text[len(common_start(with_prompt.text, without)) :]
    end = regions[-1].end
    tail, plain_tail = with_prompt.text[end:], without[end:]
    # Some templates close the conversation when no answer is asked for; then the tails differ from the start.
    return tail[len(plain_tail) :] if tail.startswith(plain_tail) else tail


def _form_of_calls(
    program: TemplateProgram, variables: dict[str, Any], roles: Sequence[str], form: Form
) -> Form | None:
    """The first form in which a tool call is written; None if the template knows no tool calls."""
    sentinel = call_sentinel(0)
    for text_arguments, empty_content in product((False, True), (False, True)):
        tried = Form(form.parts, text_arguments, empty_content)
        plain: list[Message] = [
            {"role": role, "content": content_sentinel(i)} for i, role in enumerate(roles)
        ]
        plain[-1] = {"role": "assistant", "content": None, "tool_calls": [_call(sentinel)]}
        try:
            text = program.render(adapt(plain, tried), variables)
        except RowRefused:
            continue  # this form is not the template's; the next one may be
        # A template that wants text prints an object in Python's notation, which no model should learn.
        if sentinel in text and f"{{'key': '{sentinel}'" not in text:
            return tried
    return None


def _writes_reasoning(
    program: TemplateProgram, variables: dict[str, Any], roles: Sequence[str], form: Form
) -> bool:
    """Whether reasoning is written for an answer, or at least for one that calls a tool."""
    for extra in ({}, {"tool_calls": [_call("key")]}, {"tool_calls": [_call("key")], "content": None}):
        plain: list[Message] = [
            {"role": role, "content": content_sentinel(i)} for i, role in enumerate(roles)
        ]
        plain[-1].update(extra, reasoning_content=_REASON, thinking=_REASON)
        try:
            if _REASON in program.render(adapt(plain, form), variables):
                return True
        except RowRefused:
            continue  # a template may want no calls, or no text beside reasoning
    return False


def _call(value: str) -> dict[str, Any]:
    function = {"name": "call", "arguments": {"key": value}}
    return {"id": "abcdefghi", "type": "function", "function": function}
