"""Rows of three answers: one to imitate in `reference`, and a better and a worse one beside it.

Only where the data set names the format: many preferences have a column `reference` that means something else.
"""

from typing import Any

from luthier.data.content import Answers
from luthier.data.dialogue import INSTRUCTION_COLUMNS, question_turns
from luthier.data.judged import answers_of
from luthier.data.turns import Tags, one_or_more_turns
from luthier.errors import RowRefused

SHAPES = ()
NAMED = (("prompt", "reference", "chosen", "rejected"),)
OPTIONAL = INSTRUCTION_COLUMNS
YIELDS = ()
_ANSWERS = NAMED[0][1:]


def convert(record: dict[str, Any], tags: Tags) -> Answers:
    """A ranking: the reference, then the chosen answer, then the rejected one. Raises RowRefused."""
    answers = [(f"`{name}`", _answer(record, name, tags)) for name in _ANSWERS]
    context = question_turns(record, "prompt", tags)
    return answers_of(context, answers, "ranking", {"rank": (1.0, 2.0, 3.0)}, record)


def _answer(record: dict[str, Any], column: str, tags: Tags) -> list[Any]:
    turns = one_or_more_turns(record[column], tags, column, "assistant")
    first = turns[0] if isinstance(turns[0], dict) else {}
    if first.get("role") in ("system", "developer", "user"):
        raise RowRefused(
            f"`{column}` is a whole conversation; it must be the answer alone, as `prompt` says what was asked"
        )
    if column == "reference" and not any(_says(turn) for turn in turns):
        raise RowRefused("`reference` is empty, so there is nothing to imitate")
    return turns


def _says(turn: Any) -> bool:
    """Whether there is anything in a message; one that is none is refused elsewhere."""
    if not isinstance(turn, dict):
        return True
    content = turn.get("content")
    return bool(content.strip() if isinstance(content, str) else content) or bool(turn.get("tool_calls"))
