"""Lion: steps of one size, by the sign of a running mean (Chen et al., 2023, arXiv:2302.06675, algorithm 2).

    c = β1·m + (1 - β1)·g,   w ← w - lr·(sign(c) + λ·w),   m ← β2·m + (1 - β2)·g

One state instead of AdamW's two. Each element moves by the whole learning rate, so it wants one 3 to 10 times
smaller than AdamW's, and as much more weight decay.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.optim.base import Algorithm
from luthier.optim.pieces import About, Piece


@settings
class Lion(Algorithm):
    """Steps by the sign of a running mean: half of AdamW's states; wants a 3 to 10 times smaller learning rate."""

    elementwise: ClassVar = True

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of the running mean in a step's direction."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the running mean of gradients."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """The mean at zero."""
        return {"mean": torch.zeros_like(weight)}

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """One piece after another."""
        for piece in pieces:
            mean = piece.state["mean"]
            direction = torch.lerp(piece.gradient, mean, self.beta1).sign_()
            piece.weight.mul_(1 - lr * weight_decay).sub_(direction, alpha=lr)
            mean.lerp_(piece.gradient, 1 - self.beta2)
