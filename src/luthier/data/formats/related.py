"""Rows of a query and texts that belong to it or not, for embeddings and rerankers.

An `anchor` or `query` with a `positive`, and a `negative` or a list of `negatives`; or a `query` with `documents` and
how relevant each is (`labels`, 0 to 1), or with one `document` and its `label`.
"""

from typing import Any

from luthier.data.content import Related
from luthier.data.turns import Tags
from luthier.data.values import in_words, number_in, shape_in, text_in, unpacked
from luthier.errors import RowRefused

SHAPES = (
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "documents", "labels"),
    ("query", "document", "label"),
)
OPTIONAL = ("negative", "negatives")
YIELDS = ()


def convert(record: dict[str, Any], tags: Tags) -> Related:
    """The query, its texts and their labels; those that belong to it are first. Raises RowRefused."""
    shape = shape_in(record, SHAPES)
    query = _filled(text_in(record, shape[0]), shape[0])
    if shape[1] == "documents":
        texts, values = _texts(record, "documents"), unpacked(record["labels"], "`labels`")
        if not isinstance(values, list) or len(values) != len(texts):
            found = f"has {len(values)} values" if isinstance(values, list) else f"is {in_words(values)}"
            raise RowRefused(f"`labels` {found}, `documents` has {len(texts)} texts")
        labels = [_share(value, f"label {number} of `labels`") for number, value in enumerate(values, 1)]
    elif shape[1] == "document":
        texts = [_filled(text_in(record, "document"), "document")]
        labels = [_share(unpacked(record["label"], "`label`"), "`label`")]
    else:
        if record.get("label") is not None or record.get("labels") is not None:
            raise RowRefused(
                "the row has a label beside `positive`, and it is not known what it says; rows of a `query`, a "
                "`document` and its `label` say how much they belong together"
            )
        texts = [_filled(text_in(record, "positive"), "positive"), *_negatives(record)]
        labels = [1.0, *[0.0] * (len(texts) - 1)]
    return Related(query, tuple(texts), tuple(labels))


def _negatives(record: dict[str, Any]) -> list[str]:
    one = [_filled(text_in(record, "negative"), "negative")] if record.get("negative") is not None else []
    return [*one, *(_texts(record, "negatives") if record.get("negatives") is not None else [])]


def _texts(record: dict[str, Any], column: str) -> list[str]:
    values = unpacked(record[column], f"`{column}`")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise RowRefused(f"`{column}` is {in_words(values)}, not a list of texts")
    if not values and column == "documents":
        raise RowRefused("`documents` is an empty list, so there is nothing to judge")
    return [_filled(value, column) for value in values]


def _filled(text: str, column: str) -> str:
    if not text.strip():
        raise RowRefused(f"`{column}` holds an empty text")
    return text


def _share(value: Any, what: str) -> float:
    number = number_in(value, what)
    if not 0 <= number <= 1:
        raise RowRefused(f"{what} is {number:g}; relevance is a number from 0 to 1")
    return number
