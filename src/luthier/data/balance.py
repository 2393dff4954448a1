"""One step's packs to ranks, so that none of them waits long for another.

Packs hold about as many tokens, but attention over one long row costs more than over many short ones. So the cost
of each pack is predicted; packs are dealt costliest first to the rank with the least so far, then swapped.

Shape suffixes: N rows or packs, W ranks, G rounds of dealing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]


@dataclass(frozen=True)
class CostModel:
    """Predicted cost of a row: linear in its tokens for the linear layers, quadratic for attention.

    The unit is a token's way through the linear layers. A row of n tokens costs n + per_pair · n² / 2, as each of
    its tokens looks at itself and those before it. A limited window (sliding attention) is not taken into account.
    """

    per_pair: float = 0.0
    """Cost of a token looking at another one."""

    @classmethod
    def of(cls, *, layers: int, attention_size: int, weights: int, adapters: bool = False) -> "CostModel":
        """From the shape of a model, by counting products.

        Args:
            layers: that have attention.
            attention_size: heads times the size of a head.
            weights: of all linear layers, the head among them. A token needs two operations for each, and twice
                that again in the backward pass; only once again where `adapters` are trained and not the weights.
        """
        attention = (
            3 * 4 * layers * attention_size
        )  # scores and sums; backward takes twice as long as forward
        linear = (2 if adapters else 3) * 2 * weights
        return cls(attention / linear)

    def of_rows(self, lengths_N: NDArray[np.integer]) -> Costs:
        """Predicted cost of each row, [N], by its length in tokens. `Packs.sums` adds them up."""
        wide_N = lengths_N.astype(np.float64)
        return wide_N + self.per_pair / 2 * wide_N**2


def balance(costs_N: NDArray[np.floating], world: int) -> list[NDArray[np.int64]]:
    """Deals the packs of a step to `world` ranks: numbers of packs differ by one at most, sums of costs little.

    The sums differ by no more than the costliest pack does from the cheapest (from nothing, where numbers differ).
    Each rank's packs are given costliest first, so that memory runs out at once if it must, and so that those that
    ranks compute at the same time are alike. The same costs always give the same answer.

    Returns:
        For each rank the numbers of its packs; none for some if there are fewer packs than ranks.
    """
    assert world > 0 and (costs_N >= 0).all(), "costs are not negative, and somebody bears them"
    empty = -len(costs_N) % world  # places without a pack: they cost nothing
    costs = np.concatenate([costs_N.astype(np.float64), np.zeros(empty)])
    dealt_GW = _dealt(costs, world)
    if world > 1:
        _swap(dealt_GW, costs, len(costs_N))
    packs = (packs_G[packs_G < len(costs_N)] for packs_G in dealt_GW.T)
    return [packs_G[np.lexsort((packs_G, -costs[packs_G]))] for packs_G in packs]


def _dealt(costs: Costs, world: int) -> NDArray[np.int64]:
    """Pack of each rank in each round, [G, W]: the costliest left go round by round, most to who has least."""
    dealt_GW = np.argsort(-costs, kind="stable").reshape(-1, world)
    sums_W = np.zeros(world)
    for packs_W in dealt_GW:
        poorest_W = np.argsort(sums_W, kind="stable")
        packs_W[poorest_W] = packs_W.copy()
        sums_W += costs[packs_W]
    return dealt_GW


def _swap(dealt_GW: NDArray[np.int64], costs: Costs, num_packs: int) -> None:
    """Swaps packs between the ranks with most and least, in place, as long as that brings the two together.

    A pack may be swapped for an empty place, but nobody gets a second one of these.
    """
    sums_W = costs[dealt_GW].sum(0)
    for _ in range(len(costs)):
        most, least = int(sums_W.argmax()), int(sums_W.argmin())
        gap = sums_W[most] - sums_W[least]
        moved_GG = costs[dealt_GW[:, most]][:, None] - costs[dealt_GW[:, least]][None]
        left_GG = np.abs(gap - 2 * moved_GG)
        if (dealt_GW[:, most] >= num_packs).any():
            left_GG[:, dealt_GW[:, least] >= num_packs] = np.inf
        if not left_GG.size or left_GG.min() >= gap * (1 - 1e-6):  # not for rounding errors
            return
        give, take = np.unravel_index(int(left_GG.argmin()), left_GG.shape)
        pair = (give, most), (take, least)
        dealt_GW[pair[0]], dealt_GW[pair[1]] = dealt_GW[pair[1]], dealt_GW[pair[0]]
        sums_W[[most, least]] = costs[dealt_GW[:, [most, least]]].sum(0)
