"""Sophia: momentum divided by the curvature, each step of an element clipped (Liu et al., 2023, arXiv:2305.14342,
algorithm 3, with the estimator of algorithm 2).

    m ← β1·m + (1 - β1)·g                    every `curvature_every` steps: h ← β2·h + (1 - β2)·N·ĝ²
    w ← w - lr·(λ·w + clip(m / max(γ·h, ε), 1))

ĝ is the gradient of the mean loss over N predictions whose targets are drawn from the model itself (Gauss-Newton-
Bartlett), which takes a pass of its own over the rows of the step (training/curvature.py). Where an element's curvature
is not known yet, or small, its step is the whole learning rate, by the sign of m.
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
class Sophia(Algorithm):
    """Momentum over curvature, clipped; wants about the learning rate of Lion, and a pass more now and then."""

    elementwise: ClassVar = True

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.96
    """Decay of the running mean of gradients."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the running mean of the curvature."""

    gamma: Annotated[float, Field(gt=0)] = 0.05
    """Factor on the curvature: smaller ones clip more elements."""

    eps: Annotated[float, Field(gt=0)] = 1e-12
    """Least value of the denominator."""

    curvature_every: Annotated[int, Field(ge=1)] = 10
    """Steps between two estimates of the curvature."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """Mean and curvature at zero."""
        return {"mean": torch.zeros_like(weight), "curvature": torch.zeros_like(weight)}

    def curve(self, pieces: Sequence[Piece], count: float) -> None:
        """Takes in an estimate of the curvature."""
        for piece in pieces:
            estimate = piece.gradient.square().mul_(count)
            piece.state["curvature"].lerp_(estimate, 1 - self.beta2)

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """One piece after another."""
        for piece in pieces:
            mean = piece.state["mean"].lerp_(piece.gradient, 1 - self.beta1)
            size = (piece.state["curvature"] * self.gamma).clamp_(min=self.eps)
            update = (mean / size).clamp_(-1, 1)
            piece.weight.mul_(1 - lr * weight_decay).sub_(update, alpha=lr)
