"""A frozen embedding with a low-rank update.

Shape suffixes: T tokens of the input, V vocabulary, D hidden size, R rank.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.models.lora_weight import lora_scale, low_rank_update, updated
from luthier.models.token_rows import scale_of


class LoraEmbedding(nn.Module):
    """An embedding E and its update: y = E[x] + s · A[:, x]ᵀ·Bᵀ, times what the embedding itself multiplies by.

    `lora_embedding_A` [R, V] and `lora_embedding_B` [D, R] are fp32 masters; A starts at zero and B at random, as in
    PEFT. A head that shares its weights keeps those it has. Attributes that are not found here are the base's;
    `weight` is the weight in effect.
    """

    def __init__(self, base: nn.Embedding, rank: int, alpha: float, rslora: bool = False):
        """Raises ModelError if the base does something else than a lookup."""
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rank, self.alpha, self.rslora = rank, alpha, rslora
        self.dropout, self.dora, self.name = 0.0, False, ""
        self.factor = scale_of(base)
        self.enabled = True
        rows, size = base.weight.shape
        wide = torch.promote_types(base.weight.dtype, torch.float32)
        self.lora_embedding_A = nn.Parameter(torch.zeros(rank, rows, dtype=wide, device=base.weight.device))
        self.lora_embedding_B = nn.Parameter(torch.zeros(size, rank, dtype=wide, device=base.weight.device))

    @torch.no_grad()
    def begin(self, generator: torch.Generator | None = None) -> "LoraEmbedding":
        """Draws B."""
        drawn = torch.randn(self.lora_embedding_B.shape, generator=generator)
        self.lora_embedding_B.copy_(drawn)
        return self

    @property
    def scale(self) -> float:
        """Factor on the update."""
        return lora_scale(self.rank, self.alpha, self.rslora)

    @property
    def root(self) -> nn.Embedding:
        """The embedding beneath."""
        return self.base

    @property
    def weight(self) -> Tensor:
        """The weight in effect, [V, D], in the base's dtype; differentiable."""
        if not self.enabled:
            return self.base.weight
        return updated(self.base.weight, (self.lora_embedding_A, self.lora_embedding_B), self.scale, True)

    def forward(self, x_T: Tensor) -> Tensor:
        found = self.base(x_T)
        if not self.enabled:
            return found
        low = F.embedding(x_T, self.lora_embedding_A.T) * (self.scale * self.factor)
        return (found + low @ self.lora_embedding_B.T).to(found.dtype)

    def delta_weight(self) -> Tensor:
        """The change of the weight, [V, D]."""
        with torch.no_grad():
            return low_rank_update(self.lora_embedding_A, self.lora_embedding_B, self.scale, True)

    @torch.no_grad()
    def merge(self) -> nn.Embedding:
        """Makes the update part of the base's weight, rounded once, and returns the base."""
        factors = self.lora_embedding_A, self.lora_embedding_B
        self.base.weight.copy_(updated(self.base.weight, factors, self.scale, True))
        return self.base

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, rslora={self.rslora}"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)
