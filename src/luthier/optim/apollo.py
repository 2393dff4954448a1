"""APOLLO: learning rates of channels from gradients projected at random (Zhu et al., 2024, arXiv:2412.05270, alg. 1).

    r = P·g,   Adam's update n of r,   s_j = |n_j| / |r_j| for each channel j,   w ← w - lr·(scale·g·s + λ·w)

P is drawn anew every `update_every` steps, on the shorter side, from a normal distribution of variance 1 / rank; it is
made from a seed and never kept. `per: tensor` takes one s for all channels (APOLLO-Mini: rank 1 and a larger
`scale`). An update grows by at most 1 % in norm from one step to the next.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.config.settings import settings
from luthier.optim.adamw import AdamW
from luthier.optim.base import Algorithm
from luthier.optim.pieces import About, Piece, hidden_matrix

GROWTH = 1.01


@settings
class Apollo(Algorithm):
    """Scaled gradients with states of low rank for hidden matrices: as thrifty as GaLore, without its SVD."""

    rank: Annotated[int, Field(ge=1)] = 256
    """Dimensions that gradients are projected to; matrices with a shorter side stay AdamW's."""

    per: Literal["channel", "tensor"] = "channel"
    """What gets a learning rate of its own."""

    update_every: Annotated[int, Field(ge=1)] = 200
    """Steps between two projections."""

    scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on updates, on top of the learning rate."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the running mean of gradients."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the running mean of squared gradients."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to denominators."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""

    def takes(self, parameter: nn.Parameter, about: About) -> bool:
        """Hidden matrices whose rank can be lowered."""
        return hidden_matrix(parameter, about) and min(parameter.shape) > self.rank

    def rest(self) -> Algorithm:
        """AdamW with the same numbers."""
        return AdamW(beta1=self.beta1, beta2=self.beta2, eps=self.eps, weight_decay=self.weight_decay)

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """Moments of the projected gradient, and the last update's norm."""
        small = (self.rank, max(weight.shape))
        moments = {name: weight.new_zeros(small) for name in ("mean", "square")}
        return moments | {"norm": weight.new_zeros(1)}

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """One piece after another."""
        for piece in pieces:
            state, step = piece.state, float(piece.step)
            wide = piece.gradient.shape[0] <= piece.gradient.shape[1]
            gradient = piece.gradient if wide else piece.gradient.T
            small = self._projection(piece, len(gradient)) @ gradient
            mean = state["mean"].lerp_(small, 1 - self.beta1)
            state["square"].mul_(self.beta2).addcmul_(small, small, value=1 - self.beta2)
            root = (state["square"] / (1 - self.beta2**step)).sqrt_().add_(self.eps)
            moved = mean / root.mul_(1 - self.beta1**step)
            dim = 0 if self.per == "channel" else None
            factors = torch.linalg.vector_norm(moved, dim=dim) / (
                torch.linalg.vector_norm(small, dim=dim) + self.eps
            )
            update = _slowed(gradient * factors * self.scale, state["norm"])
            piece.weight.mul_(1 - lr * weight_decay).sub_(update if wide else update.T, alpha=lr)

    def _projection(self, piece: Piece, side: int) -> Tensor:
        """The projection of this step, the same whenever and wherever it is drawn."""
        period = (int(piece.step) - 1) // self.update_every
        draw = torch.Generator(piece.weight.device).manual_seed(piece.about.number * 1_000_003 + period)
        like = {"device": piece.weight.device, "dtype": piece.weight.dtype}
        return torch.randn(self.rank, side, generator=draw, **like) / self.rank**0.5


def _slowed(update: Tensor, last: Tensor) -> Tensor:
    """The update, grown by at most 1 % against the last one's norm, which becomes its own. In place."""
    norm = torch.linalg.vector_norm(update)
    most = torch.where(last > 0, last * GROWTH, norm)
    update.mul_(torch.where(norm > most, most / norm, torch.ones_like(most)))
    last.copy_(torch.minimum(norm, most))
    return update
