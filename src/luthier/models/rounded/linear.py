"""A linear layer that computes with its weight rounded, and is trained so."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.kernels.rounding import Rounding, rounded_linear, total_weight


@dataclass(frozen=True)
class Update:
    """What an adapter adds to a weight: s·B·A, with A [R, K] and B [M, R]."""

    a_RK: Tensor
    b_MR: Tensor
    scale: float
    masters: tuple[Tensor, ...]
    """The tensors that A and B are made of, which tell whether they have changed."""

    @property
    def factors(self) -> tuple[Tensor, Tensor, float]:
        """A, B and s."""
        return self.a_RK, self.b_MR, self.scale


class RoundedLinear(nn.Linear):
    """Takes the place of an `nn.Linear` and has its parameters, which stay as exact as they were.

    Without gradients the rounded weight is kept until what it is made of changes, so that answers do not round it for
    each token.
    """

    rounding: Rounding
    _made_of: tuple[object, ...] = ()
    _kept: Tensor | None = None

    @classmethod
    def around(cls, plain: nn.Linear, rounding: Rounding) -> "RoundedLinear":
        """The layer `plain`, rounded from now on."""
        made = cls(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        made.weight, made.bias = plain.weight, plain.bias
        made.rounding = rounding
        return made.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.product(input)

    def product(self, x: Tensor, update: Update | None = None) -> Tensor:
        """x̂·Ŵᵀ + bias, with an adapter's update as part of what is rounded."""
        if torch.is_grad_enabled() or self.training:
            return rounded_linear(
                x, self.weight, self.bias, self.rounding, update.factors if update else None
            )
        return nn.functional.linear(self.rounding.seen(x), self.rounded(update).to(x.dtype), self.bias)

    @torch.no_grad()
    def rounded(self, update: Update | None = None) -> Tensor:
        """The rounded weight [M, K]; do not change it."""
        tensors = [self.weight, *(update.masters if update else ())]
        made_of = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if self._kept is None or made_of != self._made_of:
            self._kept = None  # before there is another one
            total_MK = total_weight(self.weight, update.factors if update else None)
            self._kept = self.rounding.weight(total_MK, torch.empty_like(self.weight))
            self._made_of = made_of
        return self._kept

    def train(self, mode: bool = True) -> "RoundedLinear":
        """Also gives back what was kept for answers."""
        self._kept = None
        return super().train(mode)

    def opened(self) -> nn.Linear:
        """A plain layer with the same parameters."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rounding={self.rounding}"
