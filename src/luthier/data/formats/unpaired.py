"""Rows of one answer and whether it is a good one: `label` (or `kto_tag`), true or false."""

from collections.abc import Sequence
from typing import Any

from luthier.data.content import Answers
from luthier.data.dialogue import (
    INSTRUCTION_COLUMNS,
    instruction_turns,
    question_turns,
    refuse_beside,
    with_system,
)
from luthier.data.judged import answers_of
from luthier.data.turns import Tags, one_or_more_turns, read_turns
from luthier.data.values import in_words, shape_in, text_in
from luthier.errors import RowRefused

_SPOKEN = ("messages", "conversations", "conversation")
_ANSWERED = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"))
_LABELS = ("label", "kto_tag")
SHAPES = tuple((*asked, label) for label in _LABELS for asked in (*((name,) for name in _SPOKEN), *_ANSWERED))
OPTIONAL = INSTRUCTION_COLUMNS
YIELDS = ()


def convert(record: dict[str, Any], tags: Tags) -> Answers:
    """The conversation so far and its last answer, with `label` 1 if it is good and 0 if not. Raises RowRefused."""
    *asked, label = shape_in(record, SHAPES)
    good = _truth(record[label], label)
    context, answer = _question_and_answer(record, asked, tags)
    return answers_of(context, [(f"`{asked[-1]}`", answer)], "label", {"label": (good,)}, record)


def _truth(value: Any, column: str) -> float:
    if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):  # as CSV has it
        return float(value.lower() in ("true", "1"))
    if value not in (0, 1) or not isinstance(value, bool | int | float):
        shown = repr(value) if isinstance(value, str | int | float) else in_words(value)
        raise RowRefused(
            f"`{column}` is {shown}, not true or false; if it does not say whether the answer is good, map "
            f"`{column}` to `-` in `columns`"
        )
    return float(value)


def _question_and_answer(
    record: dict[str, Any], asked: Sequence[str], tags: Tags
) -> tuple[list[Any], list[Any]]:
    if len(asked) == 1:
        (column,) = asked
        refuse_beside(record, column)
        turns = with_system(read_turns(record[column], tags, column, sharegpt=column != "messages"), record)
        are_asked = [isinstance(turn, dict) and turn.get("role") in ("user", "tool") for turn in turns]
        last = max((i + 1 for i, is_asked in enumerate(are_asked) if is_asked), default=0)
        return turns[:last], turns[last:]
    question, column = asked
    if question == "instruction":
        return instruction_turns(record), [{"role": "assistant", "content": text_in(record, column)}]
    return question_turns(record, question, tags), one_or_more_turns(
        record[column], tags, column, "assistant"
    )
