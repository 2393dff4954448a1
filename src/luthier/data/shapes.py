"""One shape that every micro-batch of a run fits in, found from the data.

CUDA graphs and compilers want every micro-batch alike. Packing sees only lengths, so the lengths in a pack are
those of every epoch; which of the rows of one length come together is not. For each length the row with most
predictions and the one with most segments are therefore taken, and a pack can hold no more than their sums.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from luthier.data.batch import Batch, Example
from luthier.data.pack import pack

MULTIPLE = 16  # of tokens: tiles of matrix products


class Rows(Protocol):
    """What is looked at of a dataset."""

    @property
    def lengths(self) -> NDArray[np.int64]: ...

    def example(self, index: int) -> Example: ...


@dataclass(frozen=True)
class FixedShape:
    """The shape of every micro-batch."""

    num_tokens: int
    num_predictions: int
    num_segments: int
    """With one more than any pack has, for padding."""
    longest: int
    """Tokens of the longest segment, padding included."""

    def fit(self, batch: Batch) -> Batch:
        """The batch in this shape."""
        return batch.padded(self.num_tokens, self.num_predictions, self.num_segments, self.longest)


def find_shape(rows: Rows, micro_tokens: int) -> FixedShape:
    """The smallest such shape for packs of at most `micro_tokens` tokens. Reads every row once."""
    lengths = np.asarray(rows.lengths)
    facts = np.array([_facts(rows.example(index)) for index in range(len(lengths))]).reshape(-1, 3)
    distinct, number_of = np.unique(lengths, return_inverse=True)
    most = np.zeros((len(distinct), 3), dtype=np.int64)  # for each length
    np.maximum.at(most, number_of, facts)
    packs = pack(lengths, micro_tokens)
    num_tokens = _up(max(int(lengths[chosen].sum()) for chosen in packs))
    sums = np.array([most[number_of[chosen], :2].sum(0) for chosen in packs])
    num_predictions, num_segments = (int(n) for n in sums.max(0))
    # a pack with few rows has much padding; it is spread over the segments that are missing
    emptiest = max(
        -(
            (int(lengths[chosen].sum()) - num_tokens)
            // (num_segments + 1 - int(most[number_of[chosen], 1].sum()))
        )
        for chosen in packs
    )
    return FixedShape(num_tokens, num_predictions, num_segments + 1, max(int(most[:, 2].max()), emptiest))


def _facts(example: Example) -> tuple[int, int, int]:
    """Predictions, segments, and tokens of the longest segment."""
    first_of_roots = sum(bool(s.weights[0]) for s in example.segments if s.parent < 0)
    predictions = sum(int(np.count_nonzero(s.weights)) for s in example.segments) - first_of_roots
    return predictions, len(example.segments), max((len(s.ids) for s in example.segments), default=0)


def _up(number: int) -> int:
    return -(-number // MULTIPLE) * MULTIPLE
