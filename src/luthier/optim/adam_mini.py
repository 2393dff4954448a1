"""Adam-mini: one mean of squares for each block of a weight (Zhang et al., 2024, arXiv:2406.16793, algorithm 1).

    v ← β2·v + (1 - β2)·mean(g² over the block),    everything else as in AdamW

Blocks: a head of a query or key projection, a row of every other matrix (a token of a table, an output of a layer),
a whole vector. So the second state of AdamW almost vanishes.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.optim.base import Algorithm
from luthier.optim.pieces import About, Piece


@settings
class AdamMini(Algorithm):
    """AdamW with one learning rate for each block of a weight: half of its states."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the running mean of gradients."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the running mean of a block's squared gradients."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """The mean of gradients, and one square for each block."""
        return {"mean": torch.zeros_like(weight), "square": torch.zeros_like(_blocks(weight, about)[..., 0])}

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """One piece after another."""
        for piece in pieces:
            step, square = float(piece.step), piece.state["square"]
            mean = piece.state["mean"].lerp_(piece.gradient, 1 - self.beta1)
            square.lerp_(_blocks(piece.gradient, piece.about).square().mean(dim=-1), 1 - self.beta2)
            root = (square / (1 - self.beta2**step)).sqrt_().add_(self.eps).mul_(1 - self.beta1**step)
            update = (_blocks(mean, piece.about) / root.unsqueeze(-1)).view_as(mean)
            piece.weight.mul_(1 - lr * weight_decay).sub_(update, alpha=lr)


def _blocks(value: Tensor, about: About) -> Tensor:
    """The value with its blocks as rows."""
    if about.head_rows and value.dim() == 2:
        return value.reshape(value.shape[0] // about.head_rows, -1)
    return value if value.dim() > 1 else value.reshape(1, -1)
