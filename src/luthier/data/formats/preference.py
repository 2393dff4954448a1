"""Rows of a better and a worse answer: `chosen` and `rejected`.

What was asked stands in `prompt`, in an Alpaca `instruction`, in `question`, in ShareGPT's `conversations`, in
`messages`, or in `chosen` and `rejected` themselves, which then are whole conversations that begin alike.
"""

import re
from typing import Any

from luthier.data.content import Answers
from luthier.data.dialogue import (
    INSTRUCTION_COLUMNS,
    instruction_turns,
    question_turns,
    refuse_beside,
    with_system,
)
from luthier.data.judged import answers_of, common_beginning
from luthier.data.turns import Tags, one_or_more_turns, read_turns
from luthier.data.values import number_in, unpacked
from luthier.errors import RowRefused

_ASKED = ("prompt", "question", "messages", "conversations", "conversation", "instruction")
_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
_SCORES += (("chosen_rating", "rejected_rating"), ("chosen-rating", "rejected-rating"))
_NUMBERS = ("margin", *(name for pair in _SCORES for name in pair))
SHAPES = (("chosen", "rejected"), *((asked, "chosen", "rejected") for asked in _ASKED))
OPTIONAL = (*INSTRUCTION_COLUMNS, *_NUMBERS)
YIELDS = ()
_SPOKEN = re.compile(r"\n\n(Human|Assistant): ?")


def convert(record: dict[str, Any], tags: Tags) -> Answers:
    """The conversation so far, and the chosen answer before the rejected one. Raises RowRefused."""
    asked = next((name for name in _ASKED if record.get(name) is not None), None)
    context = _context(record, asked, tags)
    chosen, rejected = (_side(record, name, tags) for name in ("chosen", "rejected"))
    whole = _is_whole(chosen), _is_whole(rejected)
    if whole[0] != whole[1]:
        names = ("chosen", "rejected") if whole[0] else ("rejected", "chosen")
        raise RowRefused(f"`{names[0]}` is a whole conversation and `{names[1]}` only an answer")
    if asked is None or all(whole):
        num = common_beginning(chosen, rejected)
        if asked is not None and not _contains(chosen[:num], context):
            raise RowRefused(
                f"`chosen` and `rejected` are whole conversations, and they do not begin with what `{asked}` says"
            )
        context = with_system(chosen[:num], record)
        chosen, rejected = chosen[num:], rejected[num:]
    if chosen == rejected:
        raise RowRefused("`chosen` and `rejected` say the same, so there is nothing to prefer")
    return answers_of(
        context, [("`chosen`", chosen), ("`rejected`", rejected)], "pair", _facts(record), record
    )


def _context(record: dict[str, Any], asked: str | None, tags: Tags) -> list[Any]:
    if asked is None:
        refuse_beside(record, "chosen")
        return []
    if asked == "instruction":
        return instruction_turns(record)
    if asked in ("prompt", "question"):
        return question_turns(record, asked, tags)
    refuse_beside(record, asked)
    return with_system(read_turns(record[asked], tags, asked, sharegpt=asked != "messages"), record)


def _side(record: dict[str, Any], column: str, tags: Tags) -> list[Any]:
    value = record[column]
    if isinstance(value, str) and _SPOKEN.match(value):
        return _spoken(value)
    return one_or_more_turns(value, tags, column, "assistant")


def _spoken(text: str) -> list[Any]:
    """A conversation in one text, as in Anthropic's HH: each turn after "Human:" or "Assistant:"."""
    _, *parts = _SPOKEN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[name], "content": said.strip()} for name, said in pairs]


def _is_whole(messages: list[Any]) -> bool:
    """Whether these are more than an answer: they begin with something that is not the assistant's."""
    return isinstance(messages[0], dict) and messages[0].get("role") != "assistant"


def _contains(messages: list[Any], context: list[Any]) -> bool:
    """Whether a conversation says what its row says was asked; a system prompt may be given in one place only."""
    return all(
        message in messages
        for message in context
        if not (isinstance(message, dict) and message.get("role") == "system")
    )


def _facts(record: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    facts: dict[str, tuple[float, ...]] = {}
    for names in _SCORES:
        if all(record.get(name) is not None for name in names):
            facts["score"] = tuple(number_in(unpacked(record[name], name), f"`{name}`") for name in names)
            break
    if record.get("margin") is not None:
        margin = number_in(unpacked(record["margin"], "margin"), "`margin`")
        facts["margin"] = (margin, margin)
    return facts
