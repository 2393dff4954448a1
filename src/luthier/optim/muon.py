"""Muon: the running mean of a matrix's gradients, made orthogonal (Jordan, 2024, kellerjordan.github.io/posts/muon).

    m ← μ·m + (1 - μ)·g,   o = orthogonal((1 - μ)·g + μ·m),   w ← w - lr·(scale·o + λ·w)

`orthogonal` sets all singular values to about 1 by five steps of a polynomial (Newton and Schulz), in bfloat16 on a
GPU and in the weights' own precision elsewhere. With `scale` 0.2·sqrt(larger side) an update is as large as one of
AdamW (Liu et al., 2025, arXiv:2502.16982, section 2.2), so both go by one learning rate and one weight decay.

It is for matrices that map one hidden state to another. Embeddings, heads, vectors, stacked experts and, unless
`adapters` says otherwise, the A and B of a LoRA are AdamW's.
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

POLYNOMIAL = (3.4445, -4.7750, 2.0315)
STEPS = 5
SMALLEST = 1e-7  # the norm of a matrix that is smaller


@settings
class Muon(Algorithm):
    """Orthogonal updates of hidden matrices, AdamW for everything else."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the running mean of gradients."""

    nesterov: bool = True
    """Look ahead by this step's gradient."""

    scale: Literal["adamw", "shape"] = "adamw"
    """Size of an update: `adamw`, as large as AdamW's; `shape`, sqrt(max(1, rows / columns))."""

    adapters: bool = False
    """Also for the A and B of a LoRA."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's, for the weights that are not Muon's."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's, for the weights that are not Muon's."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""

    def takes(self, parameter: nn.Parameter, about: About) -> bool:
        """Hidden matrices."""
        return hidden_matrix(parameter, about, adapters=self.adapters)

    def rest(self) -> Algorithm:
        """AdamW."""
        return AdamW(beta1=self.beta1, beta2=self.beta2, weight_decay=self.weight_decay)

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """The mean at zero."""
        return {"mean": torch.zeros_like(weight)}

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """One piece after another."""
        for piece in pieces:
            mean = piece.state["mean"].lerp_(piece.gradient, 1 - self.momentum)
            direction = torch.lerp(piece.gradient, mean, self.momentum) if self.nesterov else mean
            update = orthogonal(direction).to(mean.dtype)
            piece.weight.mul_(1 - lr * weight_decay).sub_(update, alpha=lr * self._scale(*mean.shape))

    def _scale(self, rows: int, columns: int) -> float:
        if self.scale == "adamw":
            return 0.2 * max(rows, columns) ** 0.5
        return max(1.0, rows / columns) ** 0.5


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with all singular values at about 1 (0.7 to 1.2)."""
    a, b, c = POLYNOMIAL
    dtype = torch.bfloat16 if matrix.is_cuda else matrix.dtype
    x = (matrix / matrix.norm().clamp(min=SMALLEST)).to(dtype)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
