"""Rows joined into blocks of one length, without a boundary between documents.

A block is one document to the model: positions run on and each token sees all before it, whatever row it came from.
Every token is in a block, in the order of reading, and is learned once: a block starts with the last token of the
one before it, which is not learned again. Only the first token of all has nothing before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from luthier.data.batch import Example, Segment


@dataclass(frozen=True)
class Origin:
    """Where a block begins: the number of the row, its file and line."""

    row: int
    file: str
    line: int


class Joiner:
    """Joins rows of a single run of tokens.

    Args:
        length: tokens of a block.
    """

    def __init__(self, length: int):
        assert length > 1, "a block has something to learn"
        self.length = length
        self._parts: list[Segment] = []
        self._size = 0
        self._origin: Origin | None = None

    def add(self, example: Example, origin: Origin) -> Iterator[tuple[Example, Origin]]:
        """Takes a row; gives the blocks that are full now, each with where it begins."""
        (segment,) = example.segments
        self._origin = self._origin or origin
        self._parts.append(segment)
        self._size += len(segment.ids)
        if self._size <= self.length:
            return
        ids = np.concatenate([part.ids for part in self._parts])
        weights = np.concatenate([part.weights for part in self._parts]).astype(np.float32)
        start = 0
        while len(ids) - start > self.length:
            end = start + self.length
            yield self._block(Segment(ids[start:end], weights[start:end]), self._origin), self._origin
            start, self._origin = end - 1, origin
            weights = weights.copy()  # what was given keeps its own
            weights[start] = 0
        self._parts, self._size = [Segment(ids[start:], weights[start:])], len(ids) - start

    def rest(self) -> Iterator[tuple[Example, Origin]]:
        """The last block, which is shorter, if anything in it is learned; the next row begins anew."""
        parts, origin = self._parts, self._origin
        self._parts, self._size, self._origin = [], 0, None
        if origin is None:
            return
        ids = np.concatenate([part.ids for part in parts])
        weights = np.concatenate([part.weights for part in parts]).astype(np.float32)
        if weights[1:].any():
            yield self._block(Segment(ids, weights), origin), origin

    def _block(self, segment: Segment, origin: Origin) -> Example:
        return Example((segment,), origin.row)
