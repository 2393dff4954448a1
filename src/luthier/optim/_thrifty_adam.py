"""AdamW whose moments are kept in few bits: decoded, moved and encoded again at each update."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from luthier.optim._blockwise import Format
from luthier.optim.base import Algorithm
from luthier.optim.pieces import About, Piece

SMALL = 4096  # weights with fewer elements keep whole moments (arXiv:2110.02861, section 4)


class ThriftyAdam(Algorithm):
    """The arithmetic that AdamW in 8 and in 4 bits share."""

    formats: ClassVar[dict[str, Format]]
    """How each moment is kept."""

    beta1: float
    beta2: float
    eps: float

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """Both moments at zero: codes and scales, or whole."""
        state: dict[str, Tensor] = {}
        for name, form in self.formats.items():
            if weight.numel() < SMALL:
                state[name] = torch.zeros_like(weight)
                continue
            size, blocks = form.codes(weight.numel())
            state[name] = weight.new_zeros(size, dtype=torch.uint8)
            state[f"{name}_scales"] = weight.new_zeros(blocks, dtype=torch.float32)
        return state

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """One piece after another, so that only one has whole moments at a time."""
        for piece in pieces:
            step, gradient = float(piece.step), piece.gradient
            mean = self._whole(piece, "mean").lerp_(gradient, 1 - self.beta1)
            square = self._whole(piece, "square").mul_(self.beta2)
            square.addcmul_(gradient, gradient, value=1 - self.beta2)
            self._keep(piece, "mean", mean)
            self._keep(piece, "square", square)
            root = (square / (1 - self.beta2**step)).sqrt_().add_(self.eps).mul_(1 - self.beta1**step)
            piece.weight.mul_(1 - lr * weight_decay).addcdiv_(mean, root, value=-lr)

    def _whole(self, piece: Piece, name: str) -> Tensor:
        scales = piece.state.get(f"{name}_scales")
        if scales is None:
            return piece.state[name]
        return self.formats[name].decode(piece.state[name], scales, piece.gradient)

    def _keep(self, piece: Piece, name: str, value: Tensor) -> None:
        if f"{name}_scales" not in piece.state:
            return  # it was changed in place
        codes, scales = self.formats[name].encode(value)
        piece.state[name].copy_(codes)
        piece.state[f"{name}_scales"].copy_(scales)
