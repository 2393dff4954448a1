"""Answers that are judged: checking them, and finding the conversation that they share."""

from collections.abc import Sequence
from typing import Any, Literal

from luthier.data.calls import checked_tools
from luthier.data.content import Answers
from luthier.data.conversation import Message, checked_messages, checked_template_args
from luthier.data.dialogue import tools_of
from luthier.errors import RowRefused


def answers_of(
    context: Sequence[Any],
    answers: Sequence[tuple[str, Sequence[Any]]],
    judged: Literal["pair", "label", "ranking"],
    facts: dict[str, tuple[float, ...]],
    record: dict[str, Any],
) -> Answers:
    """Checked answers to one context.

    Args:
        context: messages before the answers.
        answers: the name of each answer, for reasons, and its messages.
        judged: how they are judged.
        facts: numbers that belong to them, one an answer.
        record: the row, for its tools and variables.

    Raises:
        RowRefused: if a message cannot be used, or an answer is none.
    """
    before = checked_messages(list(context))[0] if context else []
    checked = tuple(tuple(_answer(name, messages)) for name, messages in answers)
    if not before:
        raise RowRefused("there is nothing before the answers, so it is not known what was asked")
    template_args = checked_template_args(record.get("chat_template_kwargs"))
    return Answers(tuple(before), checked, judged, facts, checked_tools(tools_of(record)), template_args)


def _answer(name: str, messages: Sequence[Any]) -> list[Message]:
    if not messages:
        raise RowRefused(f"{name} has no answer of its own")
    try:
        checked, weights = checked_messages(list(messages))
    except RowRefused as refusal:
        raise RowRefused(f"{name}: {refusal}") from refusal
    if checked[-1]["role"] != "assistant":
        raise RowRefused(f"{name} ends with a message of the {checked[-1]['role']}, not of the assistant")
    if any(weight != 1 for weight in weights):
        raise RowRefused(f"{name} has messages with weights; answers that are judged count as they are")
    return checked


def common_beginning(one: Sequence[Any], two: Sequence[Any]) -> int:
    """How many messages two conversations begin with in common, the last answer of each left out."""
    most = min(len(one), len(two)) - 1
    return next((i for i in range(most) if one[i] != two[i]), max(most, 0))
