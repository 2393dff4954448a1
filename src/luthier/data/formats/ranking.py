"""Rows of several answers with scores (more is better) or ranks (1 is the best), or answers that carry these."""

from typing import Any

from luthier.data.content import Answers
from luthier.data.dialogue import INSTRUCTION_COLUMNS, question_turns
from luthier.data.judged import answers_of
from luthier.data.turns import Tags, one_or_more_turns
from luthier.data.values import in_words, number_in, shape_in, unpacked
from luthier.errors import RowRefused

_LISTS = ("answers", "completions", "responses")
_NUMBERS = ("scores", "ranks")
_TEXTS = ("answer", "text", "completion", "response", "content")
SHAPES = tuple(("prompt", name, numbers) for name in _LISTS for numbers in _NUMBERS)
NAMED = tuple(("prompt", name) for name in _LISTS)
OPTIONAL = (*_NUMBERS, *INSTRUCTION_COLUMNS)
YIELDS = ()


def convert(record: dict[str, Any], tags: Tags) -> Answers:
    """The answers, the best one first, with their `score` or `rank`. Raises RowRefused."""
    column = shape_in(record, (*SHAPES, *NAMED))[1]
    answers = unpacked(record[column], f"`{column}`")
    if not isinstance(answers, list) or len(answers) < 2:
        found = f"has {len(answers)}" if isinstance(answers, list) else f"is {in_words(answers)}"
        raise RowRefused(f"`{column}` {found}; a ranking needs a list of two answers or more")
    name, numbers = _numbers(record, answers, column)
    order = sorted(range(len(answers)), key=lambda i: numbers[i] if name == "rank" else -numbers[i])
    context = question_turns(record, "prompt", tags)
    read = [(f"answer {i + 1} of `{column}`", _messages(answers[i], tags, i, column)) for i in order]
    return answers_of(context, read, "ranking", {name: tuple(numbers[i] for i in order)}, record)


def _numbers(record: dict[str, Any], answers: list[Any], column: str) -> tuple[str, list[float]]:
    for name in _NUMBERS:
        values = unpacked(record.get(name), f"`{name}`")
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != len(answers):
            found = f"has {len(values)} values" if isinstance(values, list) else f"is {in_words(values)}"
            raise RowRefused(f"`{name}` {found}, `{column}` has {len(answers)} answers")
        return name[:-1], [number_in(value, f"number {i} of `{name}`") for i, value in enumerate(values, 1)]
    for name in ("score", "rank"):
        if all(isinstance(answer, dict) and name in answer for answer in answers):
            what = f"`{name}` of answer {{}} of `{column}`"
            return name, [number_in(a[name], what.format(i)) for i, a in enumerate(answers, 1)]
    raise RowRefused(
        f"the answers in `{column}` have neither `scores` nor `ranks`, so none is known to be better"
    )


def _messages(answer: Any, tags: Tags, number: int, column: str) -> list[Any]:
    if isinstance(answer, dict) and "role" not in answer and "from" not in answer:
        text = next((answer[name] for name in _TEXTS if isinstance(answer.get(name), str)), None)
        if text is None:
            raise RowRefused(f"answer {number + 1} of `{column}` has none of {', '.join(_TEXTS)}")
        answer = text
    return one_or_more_turns(answer, tags, f"answer {number + 1} of {column}", "assistant")
