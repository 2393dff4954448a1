"""Rows of a text and what it is: `{"text": …, "label": …}`. A label is a name, a whole number or any number."""

from typing import Any

from luthier.data.content import Labelled
from luthier.data.turns import Tags
from luthier.data.values import in_words, number_in, shape_in, text_in
from luthier.errors import RowRefused

SHAPES = (("text", "label"), ("sentence", "label"))
OPTIONAL = ()
YIELDS = (
    "alpaca",
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
    "triple",
    "unpaired",
)


def convert(record: dict[str, Any], tags: Tags) -> Labelled:
    """The text and its label. Raises RowRefused."""
    column = shape_in(record, SHAPES)[0]
    text, label = text_in(record, column), record["label"]
    if not text:
        raise RowRefused(f"`{column}` is empty")
    if isinstance(label, str):
        if not label.strip():
            raise RowRefused("`label` is empty")
        return Labelled(text, label.strip())
    if not isinstance(label, bool | int | float):
        raise RowRefused(f"`label` is {in_words(label)}, not a name or a number")
    return Labelled(text, number_in(label, "`label`"))
