"""GaLore: Adam on gradients projected to few dimensions (Zhao et al., 2024, arXiv:2403.03507, algorithm 2).

    r = Pᵀ·g (or g·P, on the shorter side),   Adam's update n of r,   w ← w - lr·(scale·P·n + λ·w)

P holds the `rank` first singular vectors of the gradient and is made anew every `update_every` steps; the moments stay.
All weights are trained, with states of rank / shorter side of AdamW's.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.config.settings import settings
from luthier.optim.adamw import AdamW
from luthier.optim.base import Algorithm
from luthier.optim.pieces import About, Piece, hidden_matrix


@settings
class GaLore(Algorithm):
    """AdamW with states of low rank for hidden matrices; for training all weights in little memory."""

    rank: Annotated[int, Field(ge=1)] = 128
    """Dimensions that gradients are projected to; matrices with a shorter side stay AdamW's."""

    update_every: Annotated[int, Field(ge=1)] = 200
    """Steps between two projections."""

    scale: Annotated[float, Field(gt=0)] = 0.25
    """Factor on updates, on top of the learning rate."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the running mean of gradients."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the running mean of squared gradients."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""

    def takes(self, parameter: nn.Parameter, about: About) -> bool:
        """Hidden matrices whose rank can be lowered."""
        return hidden_matrix(parameter, about) and min(parameter.shape) > self.rank

    def rest(self) -> Algorithm:
        """AdamW with the same numbers."""
        return AdamW(beta1=self.beta1, beta2=self.beta2, eps=self.eps, weight_decay=self.weight_decay)

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """Moments of the projected gradient, and the projection."""
        rows, columns = weight.shape
        small = (self.rank, columns) if rows <= columns else (rows, self.rank)
        moments = {name: weight.new_zeros(small) for name in ("mean", "square")}
        return moments | {"projection": weight.new_zeros(min(rows, columns), self.rank)}

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """One piece after another."""
        for piece in pieces:
            state, gradient, step = piece.state, piece.gradient, float(piece.step)
            wide = gradient.shape[0] <= gradient.shape[1]
            if (step - 1) % self.update_every == 0:
                left = torch.linalg.svd(gradient if wide else gradient.T, full_matrices=False).U
                state["projection"].copy_(left[:, : self.rank])
            projection = state["projection"]
            small = projection.T @ gradient if wide else gradient @ projection
            mean = state["mean"].lerp_(small, 1 - self.beta1)
            state["square"].mul_(self.beta2).addcmul_(small, small, value=1 - self.beta2)
            root = (state["square"] / (1 - self.beta2**step)).sqrt_().add_(self.eps)
            update = mean / root.mul_(1 - self.beta1**step)
            back = projection @ update if wide else update @ projection.T
            piece.weight.mul_(1 - lr * weight_decay).sub_(back, alpha=lr * self.scale)
