"""Rows of three answers: one to imitate in `reference`, and a better and a worse one beside it."""

from typing import Any

from luthier.data.content import Answers
from luthier.data.dialogue import INSTRUCTION_COLUMNS, question_turns
from luthier.data.judged import answers_of
from luthier.data.turns import Tags, one_or_more_turns

SHAPES = (("prompt", "reference", "chosen", "rejected"),)
OPTIONAL = INSTRUCTION_COLUMNS
YIELDS = ()
_ANSWERS = SHAPES[0][1:]


def convert(record: dict[str, Any], tags: Tags) -> Answers:
    """A ranking: the reference, then the chosen answer, then the rejected one. Raises RowRefused."""
    answers = [(f"`{name}`", one_or_more_turns(record[name], tags, name, "assistant")) for name in _ANSWERS]
    context = question_turns(record, "prompt", tags)
    return answers_of(context, answers, "ranking", {"rank": (1.0, 2.0, 3.0)}, record)
