"""CAME: Adafactor with a mean, less sure of itself where steps differ from it (Luo et al., 2023, arXiv:2307.02047).

    v ← β2·v + (1 - β2)·(g² + eps),    u = g / sqrt(v) / max(1, RMS / clip),    m ← β1·m + (1 - β1)·u
    s ← β3·s + (1 - β3)·((u - m)² + eps_confidence),    w ← w - lr·(m / sqrt(s) + λ·w)

v and s of a matrix are kept as a row and a column each. Vectors move by m alone.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.optim._factored import clip_mean_square, follow_factors, over_root, start_factors
from luthier.optim.base import Algorithm
from luthier.optim.pieces import About, Piece


@settings
class CAME(Algorithm):
    """Adafactor's thrift with a mean of updates that counts by how steady it is; half of AdamW's states."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the running mean of updates."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the running mean of squared gradients."""

    beta3: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Decay of the running mean of the squared distance between updates and their mean."""

    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest root mean square of a weight's update, before its mean is taken."""

    eps: Annotated[float, Field(gt=0)] = 1e-30
    """Added to squared gradients."""

    eps_confidence: Annotated[float, Field(gt=0)] = 1e-16
    """Added to squared distances."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """All at zero."""
        distance = start_factors(weight, "distance") if weight.dim() > 1 else {}
        return {"mean": torch.zeros_like(weight)} | start_factors(weight) | distance

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """One piece after another."""
        for piece in pieces:
            state, mean = piece.state, piece.state["mean"]
            follow_factors(state, piece.gradient.square().add_(self.eps), 1 - self.beta2)
            update = clip_mean_square(over_root(state, piece.gradient), self.clip)
            mean.lerp_(update, 1 - self.beta1)
            if mean.dim() > 1:
                distance = update.sub_(mean).square_().add_(self.eps_confidence)
                follow_factors(state, distance, 1 - self.beta3, "distance")
                update = over_root(state, mean, "distance")
            else:
                update = mean
            piece.weight.mul_(1 - lr * weight_decay).sub_(update, alpha=lr)
