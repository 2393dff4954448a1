"""Which rows each optimizer step learns from. A pure function of seed and step: there is no position to lose.

Each epoch shuffles the rows, packs them by best fit into micro-batches of a token budget, and shuffles those.
A step is a fixed number of consecutive micro-batches, dealt out over the ranks; so neither the number of ranks
nor where a run was interrupted changes what a step consists of.
"""

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from luthier.data.batch import Batch, Example, collate
from luthier.data.pack import pack
from luthier.data.shapes import find_shape
from luthier.data.sharing import share_prefixes


class Dataset(Protocol):
    """Rows that are ready to be packed."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        ...

    def example(self, index: int) -> Example:
        """One row."""
        ...

    def locate(self, row: int) -> str:
        """Where the row came from whose example carries this number, for messages."""
        ...


class StepSource:
    """Yields, for each optimizer step, this rank's micro-batches.

    Args:
        dataset: the rows.
        tokens_per_step: tokens one update learns from, over all ranks.
        micro_tokens: tokens of one micro-batch; no row may be longer.
        seed: fixes the order.
        fixed_shape: pad all micro-batches to one shape, found from the rows.
        sharing: compute what rows of a micro-batch have in common once; not with a fixed shape.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        tokens_per_step: int,
        micro_tokens: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        fixed_shape: bool = False,
        sharing: bool = False,
    ):
        assert not (fixed_shape and sharing), "what rows share changes the shape"
        self.dataset, self.micro_tokens, self.seed = dataset, micro_tokens, seed
        self.rank, self.world = rank, world
        self.packs_per_step = max(1, tokens_per_step // micro_tokens)
        # best-fit decreasing sees only lengths, so every epoch has as many packs as this one
        self.packs_per_epoch = len(pack(np.asarray(dataset.lengths), micro_tokens))
        self.steps_per_epoch = math.ceil(self.packs_per_epoch / self.packs_per_step)
        self.shape = find_shape(dataset, micro_tokens) if fixed_shape else None
        self.sharing = sharing
        self._epoch: tuple[int, list[NDArray[np.int64]]] | None = None

    def total_steps(self, epochs: float, steps: int | None) -> int:
        """Steps of a run over so many epochs, or the given number."""
        return steps or max(1, math.ceil(epochs * self.steps_per_epoch))

    def steps(self, first: int = 0) -> Iterator[list[Batch]]:
        """The steps from `first` on, without end."""
        step = first
        while True:
            yield self.step(step)
            step += 1

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of one step that fall to this rank; possibly none."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.packs_per_step
        packs = self._packs(epoch)[start : start + self.packs_per_step]
        batches = [
            collate([self.dataset.example(int(i)) for i in rows]) for rows in packs[self.rank :: self.world]
        ]
        if self.sharing:
            batches = [share_prefixes(batch) for batch in batches]
        return [self.shape.fit(batch) for batch in batches] if self.shape else batches

    def _packs(self, epoch: int) -> list[NDArray[np.int64]]:
        """The epoch's micro-batches as row numbers, in the order of training."""
        if self._epoch is None or self._epoch[0] != epoch:
            draw = np.random.default_rng([self.seed, epoch])
            lengths = np.asarray(self.dataset.lengths)
            order = draw.permutation(len(lengths))
            packs = [order[rows] for rows in pack(lengths[order], self.micro_tokens)]
            self._epoch = epoch, [packs[i] for i in draw.permutation(len(packs))]
        return self._epoch[1]


def in_order(dataset: Dataset, micro_tokens: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """Every row once, packed, for evaluation; this rank's share."""
    packs = pack(np.asarray(dataset.lengths), micro_tokens)
    for rows in packs[rank::world]:
        yield collate([dataset.example(int(i)) for i in rows])


class Subset:
    """Some rows of a dataset, as a dataset."""

    def __init__(self, dataset: Dataset, rows: NDArray[np.int64]):
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.asarray(self.dataset.lengths)[self.rows]

    def example(self, index: int) -> Example:
        """One row."""
        return self.dataset.example(int(self.rows[index]))

    def locate(self, row: int) -> str:
        """Where the row came from whose example carries this number."""
        return self.dataset.locate(row)


def hold_out(dataset: Dataset, num_rows: int, seed: int) -> tuple[Subset, Subset]:
    """The dataset without `num_rows` rows drawn by the seed, and these rows."""
    order = np.random.default_rng([seed, 1]).permutation(len(dataset.lengths))
    return Subset(dataset, np.sort(order[num_rows:])), Subset(dataset, np.sort(order[:num_rows]))
