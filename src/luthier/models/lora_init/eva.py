"""EVA: A starts as the directions in which a layer's inputs vary most on the user's own rows (arXiv:2410.07170).

The right singular vectors of the inputs, gathered micro-batch by micro-batch; B is zero. Ranks move between layers if
that is asked for (`shared_out`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.models.lora_init._decompose import first_values
from luthier.models.lora_init.kaiming import begin as begin  # until rows have been seen

NEEDS = "inputs"


class Watch:
    """What one layer's inputs are like."""

    def __init__(self, outputs: int, rank: int, scale: float):
        self.outputs, self.rank = outputs, rank
        self.directions_SK: Tensor | None = None
        self.total = 0.0

    def see(self, x_TK: Tensor, grad_TM: Tensor | None = None) -> None:
        """Takes in the inputs of a micro-batch: the singular values and vectors of all that was seen so far."""
        rows = x_TK.float() if self.directions_SK is None else torch.cat([self.directions_SK, x_TK.float()])
        self.total += float(x_TK.float().square().sum())
        number = min(2 * self.rank, *rows.shape)
        _, values_S, right_SK = first_values(rows, number, torch.Generator().manual_seed(0))
        self.directions_SK = values_S[:, None] * right_SK

    def shares(self) -> list[float]:
        """Of all that the inputs vary, the share that lies along each direction, the largest first."""
        assert self.directions_SK is not None, "something was seen"
        return (self.directions_SK.square().sum(1) / self.total).tolist()

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [R, K], with rows of length 1, and B [M, R]."""
        assert self.directions_SK is not None, "something was seen"
        if len(self.directions_SK) < self.rank:
            raise ModelError(
                f"lora.init: eva saw inputs that span {len(self.directions_SK)} directions, fewer than the rank "
                f"{self.rank}. Lower lora.rank, or lower it for these modules in lora.ranks."
            )
        a_RK = torch.nn.functional.normalize(self.directions_SK[: self.rank])
        return a_RK, a_RK.new_zeros(self.outputs, self.rank)


def shared_out(shares: Mapping[str, list[float]], ranks: Mapping[str, int], spread: float) -> dict[str, int]:
    """The rank of each layer: as many directions in all as before, those with the largest shares of what their layer's
    inputs vary (arXiv:2410.07170, section 3.3). A layer has at least one, and at most `spread` times its rank.
    """
    most = {name: min(int(spread * rank), len(shares[name])) for name, rank in ranks.items()}
    every = [(share, name) for name in ranks for share in shares[name][1 : most[name]]]
    every.sort(key=lambda one: -one[0])
    found = dict.fromkeys(ranks, 1)
    for _, name in every[: sum(ranks.values()) - len(ranks)]:
        found[name] += 1
    return found
