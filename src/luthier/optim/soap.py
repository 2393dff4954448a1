"""SOAP: Adam in the eigenvectors of Shampoo (Vyas et al., 2024, arXiv:2409.11321, algorithm 3).

    L ← β·L + (1 - β)·g·gᵀ,   R ← β·R + (1 - β)·gᵀ·g,   with their eigenvectors Q_L and Q_R
    m ← β1·m + (1 - β1)·g,   v ← β2·v + (1 - β2)·(Q_Lᵀ·g·Q_R)²
    w ← w - lr·(Q_L·((Q_Lᵀ·m·Q_R) / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + eps))·Q_Rᵀ + λ·w)

Every `update_every` steps one step of power iteration and a QR decomposition bring the eigenvectors up to date. The
first step only begins L and R. A side longer than `largest_side` is not turned. Vectors and stacked matrices are
AdamW's.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.config.settings import settings
from luthier.optim.adamw import AdamW
from luthier.optim.base import Algorithm
from luthier.optim.pieces import About, Piece


@settings
class SOAP(Algorithm):
    """AdamW in turned coordinates: fewer steps, but two square matrices and their eigenvectors for each weight."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the running mean of gradients."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the running mean of squared gradients, in turned coordinates."""

    beta_sides: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the running means of products of gradients."""

    update_every: Annotated[int, Field(ge=1)] = 10
    """Steps between two updates of the eigenvectors."""

    largest_side: Annotated[int, Field(ge=1)] = 10000
    """A side of a matrix that is longer is not turned."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""

    def takes(self, parameter: nn.Parameter, about: About) -> bool:
        """Matrices."""
        return parameter.dim() == 2

    def rest(self) -> Algorithm:
        """AdamW with the same numbers."""
        return AdamW(beta1=self.beta1, beta2=self.beta2, eps=self.eps, weight_decay=self.weight_decay)

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """All at zero; the eigenvectors are found in the first update."""
        state = {"mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
        for side, size in zip(("left", "right"), weight.shape, strict=True):
            if size <= self.largest_side:
                state[side] = weight.new_zeros(size, size)
                state[f"{side}_vectors"] = weight.new_zeros(size, size)
        return state

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """One piece after another."""
        for piece in pieces:
            state, gradient, step = piece.state, piece.gradient, float(piece.step)
            if step > 1:
                self._move(piece, step - 1, lr, weight_decay)
            for side, product in (("left", gradient @ gradient.T), ("right", gradient.T @ gradient)):
                if side not in state:
                    continue
                state[side].lerp_(product, 1 - self.beta_sides)
                if step == 1:
                    state[f"{side}_vectors"].copy_(torch.linalg.eigh(state[side]).eigenvectors)
                elif (step - 1) % self.update_every == 0:
                    turned = torch.linalg.qr(state[side] @ state[f"{side}_vectors"]).Q
                    state[f"{side}_vectors"].copy_(turned)

    def _move(self, piece: Piece, step: float, lr: float, weight_decay: float) -> None:
        """Adam in turned coordinates; `step` counts from 1."""
        state, gradient = piece.state, piece.gradient
        left, right = state.get("left_vectors"), state.get("right_vectors")
        turned = _turn(gradient, left, right)
        mean = _turn(state["mean"].lerp_(gradient, 1 - self.beta1), left, right)
        state["square"].mul_(self.beta2).addcmul_(turned, turned, value=1 - self.beta2)
        root = (state["square"] / (1 - self.beta2**step)).sqrt_().add_(self.eps).mul_(1 - self.beta1**step)
        back = _turn(mean / root, left, right, back=True)
        piece.weight.mul_(1 - lr * weight_decay).sub_(back, alpha=lr)


def _turn(matrix: Tensor, left: Tensor | None, right: Tensor | None, back: bool = False) -> Tensor:
    """leftᵀ·matrix·right, or left·matrix·rightᵀ."""
    if left is not None:
        matrix = (left if back else left.T) @ matrix
    if right is not None:
        matrix = matrix @ (right.T if back else right)
    return matrix
