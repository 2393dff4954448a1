"""Rows that are conversations: `{"messages": [{"role": …, "content": …}, …], "tools": […]}`."""

from typing import Any

from luthier.data.content import Conversation, Prompt
from luthier.data.dialogue import CHAT_COLUMNS, conversation_or_prompt
from luthier.data.turns import Tags, read_turns

SHAPES = (("messages",),)
OPTIONAL = CHAT_COLUMNS
YIELDS = ()


def convert(record: dict[str, Any], tags: Tags) -> Conversation | Prompt:
    """The conversation of a row, or the question if nobody answers. Raises RowRefused."""
    return conversation_or_prompt(
        read_turns(record["messages"], tags, "messages", sharegpt=False), record, "messages"
    )
