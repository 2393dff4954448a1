"""A row on its way to tokens: what it needs tokenised, and what is made of it then."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from luthier.data.batch import Example, Segment
from luthier.data.tokens import Tokens
from luthier.errors import RowRefused

STEP_WEIGHT = 2.0
"""The token after the last one of a step has the weight `STEP_WEIGHT` + its label, all others have none: a step is
judged where its last token has been read."""


@dataclass(frozen=True)
class EncodeOptions:
    """What is learned of a row and how long it may be."""

    max_length: int
    """Most tokens of a row; those of all its answers together where it has several."""
    overlong: str | None = None
    """As `data.overlong`."""
    learn: str | tuple[str, ...] = "answers"
    """As `data.learn`."""
    thinking: bool | None = None
    """As `data.thinking`."""
    labels: tuple[str, ...] = ()
    """Names of the classes that labels of texts are numbered by; none: labels are numbers."""
    joined: bool = False
    """A query and each of its texts are one document, as a reranker reads them; else documents of their own."""
    in_blocks: bool = False
    """Rows are joined into blocks of `max_length` later, so plain text of any length is used."""


@dataclass(frozen=True)
class EncodedRow:
    """A row that can be learned from."""

    examples: tuple[Example, ...]
    """One; several where a long row was split."""
    text: str
    """What the tokens were made of; empty for a row of token ids."""
    status: Literal["kept", "truncated"] = "kept"
    reason: str | None = None
    """What was taken from a truncated row."""
    left_out: int = 0
    """Earlier answers whose reasoning the chat template leaves out."""


@dataclass(frozen=True)
class Draft:
    """A row before its texts are tokenised."""

    texts: Sequence[str]
    whole: Callable[[Sequence[Tokens]], EncodedRow]
    """Makes the row of its tokens, at any length. Raises RowRefused."""
    shorten: Callable[[EncodedRow, int], EncodedRow]
    """Makes it fit; is given the row and its length. Raises RowRefused."""


def too_long(length: int, options: EncodeOptions) -> str:
    """How reasons say that a row is too long."""
    return f"the row has {length} tokens, more than the {options.max_length} of data.max_length"


def dropped(length: int, options: EncodeOptions, what: str | None = None) -> RowRefused:
    """The refusal of a row that is too long; `what` names a kind of row that the chosen way cannot shorten."""
    reason = too_long(length, options)
    if what is None or options.overlong in (None, "drop"):
        return RowRefused(reason)
    return RowRefused(f"{reason}, and {what} cannot be shortened by data.overlong {options.overlong!r}")


def one_segment(ids: NDArray[np.int32], weights: NDArray[np.float32]) -> Example:
    """A row that is a single run of tokens."""
    return Example((Segment(ids, weights),))


def sequences(example: Example) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """The ids and weights of each sequence of an example, from its root to its leaf."""
    parents = {segment.parent for segment in example.segments}
    leaves = [number for number in range(len(example.segments)) if number not in parents]
    return [_path(example, leaf) for leaf in leaves]


def _path(example: Example, leaf: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    path: list[Segment] = []
    number = leaf
    while number >= 0:
        path.append(example.segments[number])
        number = path[-1].parent
    path.reverse()
    return np.concatenate([s.ids for s in path]), np.concatenate([s.weights for s in path])
