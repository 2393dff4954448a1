"""LoRA-GA: A and B start along the gradient that all weights would get on the user's own rows (arXiv:2407.05000).

    G = U·S·Vᵀ        A = ⁴√M / √γ · V_{1..r}ᵀ        B = ⁴√M / √γ · U_{r+1..2r}        γ = 16

so that the first step of the adapter goes where the first step of full fine-tuning would. The gradient is that of the
negative log-probability of what is learned.
"""

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.models.lora_init._decompose import first_values
from luthier.models.lora_init.kaiming import begin as begin  # until rows have been seen

NEEDS = "gradients"
GAMMA = 16.0


class Watch:
    """The gradient of one layer's weight, kept as its first singular values."""

    def __init__(self, outputs: int, rank: int, scale: float):
        self.outputs, self.rank = outputs, rank
        self.found: tuple[Tensor, Tensor, Tensor] | None = None

    def see(self, x_TK: Tensor, grad_TM: Tensor | None = None) -> None:
        """Adds what these inputs and gradients of the outputs say of the weight."""
        assert grad_TM is not None, "gradients are needed"
        gradient_MK = grad_TM.float().T @ x_TK.float()
        if self.found is not None:
            left_MS, values_S, right_SK = self.found
            gradient_MK += (left_MS * values_S) @ right_SK
        if 2 * self.rank > min(gradient_MK.shape):
            raise ModelError(
                f"lora.init: lora_ga needs twice the rank {self.rank} of directions, and a weight has only "
                f"{min(gradient_MK.shape)}. Lower lora.rank, or lower it for these modules in lora.ranks."
            )
        self.found = first_values(gradient_MK, 2 * self.rank, torch.Generator().manual_seed(0))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [R, K] and B [M, R]."""
        assert self.found is not None, "something was seen"
        left_MS, _, right_SK = self.found
        size = self.outputs**0.25 / GAMMA**0.5
        return size * right_SK[: self.rank], size * left_MS[:, self.rank :]
