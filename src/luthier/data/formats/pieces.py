"""Rows of raw text in pieces, some of them learned: `{"segments": [{"text": …, "label": true}, …]}`."""

from typing import Any

from luthier.data.content import Pieces
from luthier.data.turns import Tags
from luthier.data.values import in_words, unpacked
from luthier.errors import RowRefused

SHAPES = (("segments",),)
OPTIONAL = ()
YIELDS = ()


def convert(record: dict[str, Any], tags: Tags) -> Pieces:
    """The pieces in order; those with a true `label` are learned. Raises RowRefused."""
    segments = unpacked(record["segments"], "`segments`")
    if not isinstance(segments, list):
        raise RowRefused(f"`segments` is {in_words(segments)}, not a list of objects with `text` and `label`")
    pieces = tuple(_piece(segment, number) for number, segment in enumerate(segments, start=1))
    if not any(learned and text for text, learned in pieces):
        raise RowRefused("all targets masked: no segment of `segments` with text has a true `label`")
    return Pieces(pieces)


def _piece(segment: Any, number: int) -> tuple[str, bool]:
    if not isinstance(segment, dict):
        raise RowRefused(f"segment {number} is {in_words(segment)}, not an object with `text` and `label`")
    text, label = segment.get("text"), segment.get("label")
    if not isinstance(text, str):
        raise RowRefused(f"segment {number} has a `text` that is {in_words(text)}, not text")
    if not isinstance(label, bool):
        raise RowRefused(f"segment {number} has a `label` that is {in_words(label)}, not true or false")
    return text, label
