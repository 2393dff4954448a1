"""Which rows each optimizer step learns from. A pure function of seed and step: there is no position to lose.

Each epoch shuffles the rows, packs them by best fit into micro-batches of a token budget, and shuffles those.
A step is a fixed number of consecutive micro-batches, dealt out over the ranks by predicted cost; so neither the
number of ranks nor where a run was interrupted changes what a step consists of. Rows that are too many for that
are read in windows (`stream.py`).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from luthier.data.balance import CostModel, balance
from luthier.data.batch import Batch, Example, collate
from luthier.data.pack import Packs, pack
from luthier.data.shapes import FixedShape, find_shape
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


class Steps:
    """What every source of steps does alike with the packs of a step.

    Args:
        tokens_per_step: tokens one update learns from, over all ranks.
        micro_tokens: tokens of one micro-batch; no row may be longer.
        seed: fixes the order.
        fixed_shape: pad all micro-batches to one shape.
        sharing: compute what rows of a micro-batch have in common once; not with a fixed shape.
        cost: what a row costs, to deal packs to ranks.
    """

    def __init__(
        self,
        *,
        tokens_per_step: int,
        micro_tokens: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        sharing: bool = False,
        cost: CostModel = CostModel(),  # noqa: B008 - frozen
    ):
        self.micro_tokens, self.seed, self.rank, self.world = micro_tokens, seed, rank, world
        self.packs_per_step = max(1, tokens_per_step // micro_tokens)
        self.sharing, self.cost = sharing, cost
        self.shape: FixedShape | None = None
        self.first_step = 0  # the one that has the first rows
        self.failed = False
        """Whether the next rows could not be had: what went wrong last is theirs, on every rank."""

    def shuffled_packs(self, lengths: NDArray[np.int64], *draws: int) -> tuple[Packs, NDArray[np.int64]]:
        """Rows of these lengths as packs, and the order of these, both as the seed and `draws` say."""
        draw = np.random.default_rng([self.seed, *draws])
        order = draw.permutation(len(lengths))
        packs = pack(lengths[order], self.micro_tokens).renumbered(order)
        return packs, draw.permutation(len(packs))

    def mine(self, costs: Sequence[float]) -> list[int]:
        """Which of a step's packs fall to this rank."""
        if self.world == 1:
            return list(range(len(costs)))
        return balance(np.array(costs, dtype=np.float64), self.world)[self.rank].tolist()

    def stop_waiting(self) -> None:
        """Ends a wait for rows that is under way by raising `StopWaiting`: for the handler of a signal."""

    def batch(self, examples: Sequence[Example]) -> Batch:
        """A micro-batch."""
        batch = collate(examples)
        if self.sharing:
            batch = share_prefixes(batch)
        return self.shape.fit(batch) if self.shape else batch


class StepSource(Steps):
    """Yields, for each optimizer step, this rank's micro-batches.

    Args:
        dataset: the rows.
        fixed_shape: pad all micro-batches to one shape, found from the rows.
        options: see `Steps`.
    """

    def __init__(self, dataset: Dataset, *, fixed_shape: bool = False, **options: Any):
        super().__init__(**options)
        assert not (fixed_shape and self.sharing), "what rows share changes the shape"
        self.dataset = dataset
        self._lengths = np.asarray(dataset.lengths)
        # best-fit decreasing sees only lengths, so every epoch has as many packs as this one
        self.packs_per_epoch = len(pack(self._lengths, self.micro_tokens))
        self.steps_per_epoch = math.ceil(self.packs_per_epoch / self.packs_per_step)
        self.shape = find_shape(dataset, self.micro_tokens) if fixed_shape else None
        self._epoch: tuple[int, Packs, NDArray[np.int64]] | None = None

    def total_steps(self, epochs: float, steps: int | None) -> int:
        """Steps of a run over so many epochs, or the given number."""
        return steps or max(1, math.ceil(epochs * self.steps_per_epoch))

    def ready(self, total_steps: int) -> int:
        """How many steps the run has, as known before the next one: the given number."""
        return total_steps

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to go on from here: nothing, the step says it all, if the rows began with it."""
        return {"first_step": self.first_step} if self.first_step else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from where `state` was taken."""
        self.first_step = state["first_step"]

    def begin_at(self, step: int) -> None:
        """Gives the first rows to this step."""
        self.first_step = step

    def close(self) -> None:
        """Lets go of what belongs to it."""

    def locate(self, row: int) -> str:
        """Where the row with this number was read."""
        return self.dataset.locate(row)

    def steps(self, first: int = 0) -> Iterator[list[Batch]]:
        """The steps from `first` on, without end."""
        step = first
        while True:
            yield self.step(step)
            step += 1

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of one step that fall to this rank; possibly none."""
        epoch, within = divmod(step - self.first_step, self.steps_per_epoch)
        start = within * self.packs_per_step
        packs, order = self._packs(epoch)
        packs = [packs[int(number)] for number in order[start : start + self.packs_per_step]]
        costs = [float(self.cost.of_rows(self._lengths[rows]).sum()) for rows in packs]
        return [self.batch([self.dataset.example(int(i)) for i in packs[n]]) for n in self.mine(costs)]

    def _packs(self, epoch: int) -> tuple[Packs, NDArray[np.int64]]:
        """The epoch's micro-batches as row numbers, and the order of training."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, *self.shuffled_packs(self._lengths, epoch)
        return self._epoch[1:]


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


def hold_out(dataset: Dataset, held: NDArray[np.bool_]) -> tuple[Subset, Subset]:
    """The dataset without the examples that are `held` out, and these."""
    return Subset(dataset, np.flatnonzero(~held)), Subset(dataset, np.flatnonzero(held))
