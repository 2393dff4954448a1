"""How a model writes calls of tools and thoughts, found by rendering its chat template, and who can read that."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from luthier.data.template import TemplateProgram
from luthier.errors import DataError, RowRefused

NAME, VALUE = "qzNAMEzq", "qzVALUEzq"
ASKED = [{"role": "user", "content": "qzASKzq"}]
CALL = {"type": "function", "function": {"name": NAME, "arguments": {"of": VALUE}}}
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "what it does",
        "parameters": {"type": "object", "properties": {"of": {"type": "string"}}},
    },
}
CALLS = (
    ("[TOOL_CALLS]", "mistral"),
    ("<tool_call>\n{", "hermes"),
    ('{"name": "' + NAME + '", "parameters"', "llama3"),
)
"""What stands around a call, and what we call this way of writing it."""


@dataclass(frozen=True)
class Speech:
    """The ways, by our names; None: none, or one that is not known here."""

    calls: str | None = None
    thoughts: str | None = None
    notes: tuple[str, ...] = ()


def how_it_speaks(source: str | None, now: datetime, variables: Mapping[str, Any]) -> Speech:
    """What the template says of calls and thoughts."""
    if not source:
        return Speech(
            notes=("The model has no chat template: it can go on with texts (/v1/completions), not chat.",)
        )
    try:
        program = TemplateProgram(source, now)
    except DataError as error:
        return Speech(notes=(f"Its chat template cannot be read: {error}",))
    text = _rendered(program, [*ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}], variables)
    notes = []
    calls = next((way for mark, way in CALLS if mark in text), None) if NAME in text else None
    if NAME in text and calls is None:
        notes.append(
            "It writes calls of tools in a way for which no parser is known here: clients get them as text."
        )
    on, off = (_rendered(program, ASKED, {**variables, "enable_thinking": on}) for on in (True, False))
    thoughts = "think" if on != off and "</think>" in off + on else None
    return Speech(calls, thoughts, tuple(notes))


def _rendered(program: TemplateProgram, messages: list[Any], variables: Mapping[str, Any]) -> str:
    """The text, or nothing where the template refuses."""
    try:
        told = {"add_generation_prompt": len(messages) == 1, "bos_token": "", "eos_token": "", **variables}
        return program.render(messages, {**told, "tools": [TOOL]} if len(messages) > 1 else told)
    except RowRefused:
        return ""
