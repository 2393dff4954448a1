"""AdEMAMix: Adam with a second, much slower mean of gradients (Pagliardini et al., 2024, arXiv:2409.03137).

    m1 ← β1·m1 + (1 - β1)·g,   m2 ← β3(t)·m2 + (1 - β3(t))·g,   v ← β2·v + (1 - β2)·g²
    w ← w - lr·((m1 / (1 - β1^t) + α(t)·m2) / (sqrt(v / (1 - β2^t)) + eps) + λ·w)

Over `slow_warmup_steps`, α(t) rises in a straight line, and β3(t) from β1 so that the half-life of m2 does; the paper
has as many as the run has steps.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.optim.base import Algorithm
from luthier.optim.pieces import About, Piece


@settings
class AdEMAMix(Algorithm):
    """Adam that also remembers gradients of thousands of steps ago; for long runs."""

    elementwise: ClassVar = True

    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Decay of the fast mean of gradients."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the running mean of squared gradients."""

    beta3: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    """Decay of the slow mean of gradients."""

    alpha: Annotated[float, Field(ge=0)] = 5.0
    """Weight of the slow mean beside the fast one."""

    slow_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which alpha and beta3 rise to their values; the paper has all steps of the run."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """All three means at zero."""
        return {name: torch.zeros_like(weight) for name in ("mean", "slow", "square")}

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """One piece after another."""
        for piece in pieces:
            step, state, gradient = float(piece.step), piece.state, piece.gradient
            alpha, beta3 = self._warmed(step)
            state["mean"].lerp_(gradient, 1 - self.beta1)
            state["slow"].lerp_(gradient, 1 - beta3)
            state["square"].mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
            root = (state["square"] / (1 - self.beta2**step)).sqrt_().add_(self.eps)
            update = (state["mean"] / (1 - self.beta1**step)).add_(state["slow"], alpha=alpha).div_(root)
            piece.weight.mul_(1 - lr * weight_decay).sub_(update, alpha=lr)

    def _warmed(self, step: float) -> tuple[float, float]:
        """Weight and decay of the slow mean at a step."""
        if step >= self.slow_warmup_steps:
            return self.alpha, self.beta3
        done = step / self.slow_warmup_steps
        fast, slow = math.log(self.beta1), math.log(self.beta3)
        return self.alpha * done, min(self.beta3, math.exp(fast * slow / ((1 - done) * slow + done * fast)))
