"""Rows of one prompt with several answers: the prompt once for all of them, or once for each.

Both give the same loss and the same gradients; which is faster is predicted from some micro-batches. A shared prompt
saves its tokens, and attention over it, but a forest of segments costs attention some bookkeeping, so it has to pay.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from luthier.data.balance import CostModel
from luthier.data.batch import Batch, Example, Segment, collate
from luthier.data.draft import sequences
from luthier.data.loader import Dataset
from luthier.data.pack import pack
from luthier.data.sharing import share_prefixes

MIN_GAIN = 1.1
"""How many times as fast sharing has to be."""
_SAMPLE = 8
"""Micro-batches that are looked at."""


@dataclass(frozen=True)
class Layout:
    """How the rows of a run are laid out."""

    dataset: Dataset
    sharing: bool
    """Whether rows of a micro-batch share what they begin with, too."""
    note: str = ""
    """What a person should be told."""


class Apart:
    """The rows of a dataset, each answer with a prompt of its own; rows that would be too long for that stay.

    Args:
        dataset: the rows.
        most_tokens: what a row may have.
    """

    def __init__(self, dataset: Dataset, most_tokens: int):
        self.dataset = dataset
        shared = np.asarray(dataset.lengths)
        apart = np.array([_tokens_apart(dataset.example(i)) for i in range(len(shared))], dtype=np.int64)
        self._laid = apart <= most_tokens
        self.lengths: NDArray[np.int64] = np.where(self._laid, apart, shared)

    def example(self, index: int) -> Example:
        """One row."""
        example = self.dataset.example(index)
        return apart(example) if self._laid[index] else example

    def locate(self, row: int) -> str:
        """As the dataset says."""
        return self.dataset.locate(row)


def apart(example: Example) -> Example:
    """The same row with every sequence as a document of its own."""
    return replace(example, segments=tuple(Segment(ids, weights) for ids, weights in sequences(example)))


def _tokens_apart(example: Example) -> int:
    return sum(len(ids) for ids, _ in sequences(example))


def predicted_gain(batch: Batch, cost: CostModel) -> float:
    """How many times as much the sequences of a batch would cost as documents of their own."""
    starts, parents = batch.starts_S1.tolist(), batch.parent_S.tolist()
    depth: list[int] = []  # tokens up to the end of each segment
    shared = 0.0
    for segment, parent in enumerate(parents):
        before = depth[parent] if parent >= 0 else 0
        depth.append(before + starts[segment + 1] - starts[segment])
        # what the tokens of a segment cost is what a row up to its end costs, less what one up to its start does
        ends = cost.of_rows(np.array([depth[-1], before]))
        shared += float(ends[0] - ends[1])
    leaves = [path[-1] for path in batch.paths()]
    return float(cost.of_rows(np.array([depth[leaf] for leaf in leaves])).sum()) / shared if shared else 1.0


def lay_out(
    dataset: Dataset, cost: CostModel, micro_tokens: int, *, sharing: bool, hinder: str = ""
) -> Layout:
    """The layout that is predicted to be fastest.

    Args:
        dataset: the rows.
        cost: what they cost.
        micro_tokens: of a micro-batch.
        sharing: whether rows of a micro-batch may share what they begin with.
        hinder: why the answers of a row cannot share their prompt; empty: they can.
    """
    packs = pack(np.asarray(dataset.lengths), micro_tokens)
    numbers = np.unique(np.linspace(0, len(packs) - 1, min(len(packs), _SAMPLE)).astype(int))
    batches = [collate([dataset.example(int(i)) for i in packs[int(number)]]) for number in numbers]
    if not any(bool((batch.parent_S >= 0).any()) for batch in batches):
        return Layout(dataset, sharing)
    if hinder:
        note = f"each answer of a row has a prompt of its own: {hinder}"
        return Layout(Apart(dataset, micro_tokens), sharing, note)
    batches = [share_prefixes(batch) if sharing else batch for batch in batches]
    gains = [predicted_gain(batch, cost) for batch in batches]
    gain = float(np.average(gains, weights=[batch.num_tokens for batch in batches]))
    if gain >= MIN_GAIN:
        return Layout(
            dataset, sharing, f"the answers of a row share its prompt: predicted {gain:.2f} times as fast"
        )
    note = f"each answer of a row has a prompt of its own: sharing it would be only {gain:.2f} times as fast"
    return Layout(Apart(dataset, micro_tokens), False, note)
