"""Rows of a question and its answer, as in GSM8K: `{"question": …, "answer": …}`."""

from typing import Any

from luthier.data.content import Conversation
from luthier.data.dialogue import INSTRUCTION_COLUMNS, conversation_of, instruction_turns
from luthier.data.turns import Tags
from luthier.data.values import shape_in, text_in

SHAPES = (("question", "answer"), ("question", "response"))
OPTIONAL = INSTRUCTION_COLUMNS
YIELDS = ()


def convert(record: dict[str, Any], tags: Tags) -> Conversation:
    """The question as the user's message and the answer as the assistant's. Raises RowRefused."""
    answer = shape_in(record, SHAPES)[1]
    text_in(record, "question")
    asked = instruction_turns(record, "question")
    return conversation_of([*asked, {"role": "assistant", "content": text_in(record, answer)}], record)
