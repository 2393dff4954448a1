"""Rows of Alpaca: `{"instruction": …, "input": …, "output": …, "history": [[q, a], …], "system": …}`.

The instruction and the input make one question, with a line break between them.
"""

from typing import Any

from luthier.data.content import Conversation
from luthier.data.dialogue import INSTRUCTION_COLUMNS, conversation_of, instruction_turns
from luthier.data.turns import Tags
from luthier.data.values import text_in

ANSWERS = ("output", "response")
SHAPES = (("instruction", "output"), ("instruction", "response"))
OPTIONAL = INSTRUCTION_COLUMNS
YIELDS = ()


def convert(record: dict[str, Any], tags: Tags) -> Conversation:
    """The exchanges of the history and the last question with its answer; all answers are learned."""
    answer = next(name for name in ANSWERS if name in record)
    answered = {"role": "assistant", "content": text_in(record, answer)}
    return conversation_of([*instruction_turns(record), answered], record)
