"""Schedule-free AdamW: an average of weights instead of a falling learning rate (Defazio et al., 2024,
arXiv:2405.15682, algorithm 1).

    y = (1 - β1)·z + β1·x,   z ← z - lr·(g(y) / (sqrt(v / (1 - β2^t)) + eps) + λ·y),   x ← (1 - c)·x + c·z

c is the share of this step in the sum of all squared learning rates (of the largest so far). Gradients are computed at
y, which is what the model holds while it trains; x is what is evaluated, saved and chatted with, and is made from y
and z when it is asked for.
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
class ScheduleFree(Algorithm):
    """AdamW without a schedule: what is kept is an average of all steps. Wants `schedule: constant` with warm-up."""

    elementwise: ClassVar = True
    replaces_schedule: ClassVar = True

    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Where between the newest weights (0) and their average (1) gradients are computed."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the running mean of squared gradients."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """z where the weights are; nothing summed yet."""
        zero = torch.zeros((), dtype=torch.float64)
        state = {"newest": weight.detach().clone(), "square": torch.zeros_like(weight)}
        return state | {"sum": zero, "largest": zero.clone()}

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """One piece after another."""
        for piece in pieces:
            state, gradient = piece.state, piece.gradient
            state["largest"].clamp_(min=lr)
            counts = float(state["largest"]) ** 2
            state["sum"].add_(counts)
            share = counts / float(state["sum"]) if counts else 0.0
            state["square"].mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
            root = (state["square"] / (1 - self.beta2 ** float(piece.step))).sqrt_().add_(self.eps)
            move = torch.div(gradient, root, out=root).add_(piece.weight, alpha=weight_decay)
            # what that does to y, without x
            piece.weight.lerp_(state["newest"], share).add_(move, alpha=lr * (self.beta1 * (1 - share) - 1))
            state["newest"].sub_(move, alpha=lr)

    def shown(self, piece: Piece) -> Tensor:
        """x."""
        return torch.lerp(piece.weight, piece.state["newest"], 1 - 1 / self.beta1)
