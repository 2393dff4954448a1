"""Adafactor: squares of a matrix as one row and one column (Shazeer and Stern, 2018, arXiv:1804.04235, algorithm 4).

    v ← β·v + (1 - β)·(g² + eps),  β = 1 - t^-decay,   u = g / sqrt(v),   u ← u / max(1, RMS(u) / clip)

and w ← w - lr·(u + λ·w). With `beta1` a running mean of u is taken instead of u. With `relative` the learning rate
counts in units of each weight's own size, max(1e-3, RMS(w)), as in the paper; without it, as of AdamW.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.optim._factored import (
    clip_mean_square,
    follow_factors,
    over_root,
    root_mean_square,
    start_factors,
)
from luthier.optim.base import Algorithm
from luthier.optim.pieces import About, Piece

SMALLEST = 1e-3  # the size of a weight that is smaller, for `relative`


@settings
class Adafactor(Algorithm):
    """Almost no states: of each matrix a row and a column of squares, and no mean of gradients."""

    beta1: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of a running mean of updates, which costs 4 bytes a weight. Absent: none."""

    decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    """The mean of squares at step t decays by 1 - t^-decay."""

    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest root mean square of a weight's update, before the learning rate."""

    relative: bool = False
    """The learning rate counts in units of each weight's own size."""

    eps: Annotated[float, Field(gt=0)] = 1e-30
    """Added to squared gradients."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """Squares at zero, and the mean if there is one."""
        mean = {} if self.beta1 is None else {"mean": torch.zeros_like(weight)}
        return start_factors(weight) | mean

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """One piece after another."""
        for piece in pieces:
            share = float(piece.step) ** -self.decay
            follow_factors(piece.state, piece.gradient.square().add_(self.eps), share)
            update = clip_mean_square(over_root(piece.state, piece.gradient), self.clip)
            if self.beta1 is not None:
                update = piece.state["mean"].lerp_(update, 1 - self.beta1).clone()
            update.add_(piece.weight, alpha=weight_decay)
            if self.relative:
                update.mul_(root_mean_square(piece.weight.detach()).clamp_(min=SMALLEST))
            piece.weight.sub_(update, alpha=lr)
