"""Rows of ShareGPT: `{"conversations": [{"from": "human", "value": …}, …], "tools": "[…]"}`.

Turns may also be written with `role` and `content`. A turn of `function_call` holds JSON and becomes a tool call;
roles need not alternate.
"""

from typing import Any

from luthier.data.calls import wrapped_tools
from luthier.data.content import Conversation, Prompt
from luthier.data.dialogue import CHAT_COLUMNS, conversation_or_prompt
from luthier.data.turns import Tags, read_turns
from luthier.data.values import shape_in

SHAPES = (("conversations",), ("conversation",))
OPTIONAL = CHAT_COLUMNS
YIELDS = ()


def convert(record: dict[str, Any], tags: Tags) -> Conversation | Prompt:
    """The conversation of a row, or the question if nobody answers. Raises RowRefused."""
    column = shape_in(record, SHAPES)[0]
    turns = read_turns(record[column], tags, column, sharegpt=True)
    return conversation_or_prompt(turns, {**record, "tools": wrapped_tools(record.get("tools"))}, column)
