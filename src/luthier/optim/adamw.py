"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, 2017, arXiv:1711.05101).

One call of torch's fused kernel updates everything: adapters as one flat tensor (gradients.py), other weights
as a list. SmolLM2-135M on two cores: 22.8 -> 1.8 ms for a LoRA of rank 16, 646 -> 71 ms for all weights.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.adamw import adamw

from luthier.config.settings import settings
from luthier.optim.base import Algorithm
from luthier.optim.pieces import About, Piece


@settings
class AdamW(Algorithm):
    """Adam with decoupled weight decay; states in fp32, and fp32 masters for weights of lower precision."""

    elementwise: ClassVar = True
    scalars_on_device: ClassVar = True

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the running mean of gradients."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the running mean of squared gradients."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """Both moments at zero."""
        return {"mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """All pieces in one call."""
        if not pieces:
            return
        before = [piece.step - 1 for piece in pieces]  # torch counts for itself
        adamw(
            [piece.weight for piece in pieces],
            [piece.gradient for piece in pieces],
            [piece.state["mean"] for piece in pieces],
            [piece.state["square"] for piece in pieces],
            [],
            before,
            fused=True,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=lr,
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=False,
        )
