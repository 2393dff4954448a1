"""Rows that are conversations: `{"messages": [{"role": …, "content": …}, …], "tools": […]}`."""

from typing import Any

from luthier.data.conversation import Conversation, conversation_from

COLUMNS = ("messages",)
OPTIONAL = ("tools", "chat_template_kwargs")


def convert(record: dict[str, Any]) -> Conversation:
    """The conversation of a row; `chat_template_kwargs` are variables for the template. Raises RowRefused."""
    return conversation_from(record["messages"], record.get("tools"), record.get("chat_template_kwargs"))
