"""Rows of plain text to learn as it is, as in pre-training: `{"text": …}`."""

from typing import Any

from luthier.data.content import Text
from luthier.data.turns import Tags
from luthier.data.values import text_in
from luthier.errors import RowRefused

SHAPES = (("text",), ("content",))
OPTIONAL = ()
YIELDS = (
    "alpaca",
    "labelled",
    "messages",
    "pieces",
    "preference",
    "prompt_completion",
    "question_answer",
    "ranking",
    "related",
    "sharegpt",
    "stepwise",
    "tokenised",
    "unpaired",
)


def convert(record: dict[str, Any], tags: Tags) -> Text:
    """The text; every token of it is learned. Raises RowRefused."""
    column = "text" if record.get("text") is not None or "content" not in record else "content"
    if column == "content" and "role" in record:
        raise RowRefused(
            "the row is one message with `role` and `content`; write the messages of a conversation as one list in "
            "`messages`"
        )
    text = text_in(record, column)
    if not text:
        raise RowRefused(f"`{column}` is empty")
    return Text(text, {name: value for name, value in record.items() if name != column})
