"""Rows of a prompt and its completion, each a text or a list of messages; only the completion is learned."""

from typing import Any

from luthier.data.content import Conversation
from luthier.data.dialogue import INSTRUCTION_COLUMNS, conversation_of, question_turns
from luthier.data.turns import Tags, one_or_more_turns
from luthier.data.values import shape_in

SHAPES = (("prompt", "completion"), ("prompt", "response"), ("query", "response"))
OPTIONAL = INSTRUCTION_COLUMNS
YIELDS = ()


def convert(record: dict[str, Any], tags: Tags) -> Conversation:
    """One question and its answer, or the messages of both joined. Raises RowRefused."""
    question, answer = shape_in(record, SHAPES)
    prompt = question_turns(record, question, tags)
    completion = one_or_more_turns(record[answer], tags, answer, "assistant")
    earlier = [float(not (isinstance(m, dict) and m.get("role") == "assistant")) for m in prompt]
    return conversation_of([*prompt, *completion], record, [*earlier, *[1.0] * len(completion)])
