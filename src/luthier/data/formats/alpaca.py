"""Rows of Alpaca: `{"instruction": …, "input": …, "output": …, "history": [[q, a], …], "system": …}`.

The instruction and the input make one question, with a line break between them.
"""

from typing import Any

from luthier.data.content import Conversation
from luthier.data.dialogue import INSTRUCTION_COLUMNS, conversation_of, instruction_turns
from luthier.data.turns import Tags
from luthier.data.values import shape_in, text_in

SHAPES = (("instruction", "output"), ("instruction", "response"))
OPTIONAL = INSTRUCTION_COLUMNS
YIELDS = ()


def convert(record: dict[str, Any], tags: Tags) -> Conversation:
    """The exchanges of the history and the last question with its answer; all answers are learned."""
    answer = shape_in(record, SHAPES)[1]
    answered = {"role": "assistant", "content": text_in(record, answer)}
    return conversation_of([*instruction_turns(record), answered], record)
