"""Rows of a prompt and its completion, each a text or a list of messages; only the completion is learned."""

from typing import Any

from luthier.data.conversation import Conversation, conversation_from
from luthier.errors import RowRefused

COLUMNS = ("prompt", "completion")
OPTIONAL = ("tools", "chat_template_kwargs")


def convert(record: dict[str, Any]) -> Conversation:
    """One question and its answer, or the messages of both joined. Raises RowRefused."""
    prompt = _messages(record["prompt"], "prompt", "user")
    completion = _messages(record["completion"], "completion", "assistant")
    learn = [False] * len(prompt) + [True] * len(completion)
    return conversation_from(
        prompt + completion, record.get("tools"), record.get("chat_template_kwargs"), learn
    )


def _messages(value: Any, column: str, role: str) -> list[Any]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise RowRefused(f"`{column}` is neither text nor a list of messages")
    if not value:
        raise RowRefused(f"`{column}` is an empty list")
    return value
