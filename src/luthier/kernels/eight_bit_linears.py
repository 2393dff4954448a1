"""Stacked linear layers whose products with frozen weights stay in 8 bits (eight_bits.py), adapters beside them.

    y = x̂·Wᵀ + low·Bᵀ        low = x·(s·A)ᵀ        dx = ĝ·W + dlow·(s·A)        dlow = dy·B

Adapters see inputs and gradients as they are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.kernels import eight_bits
from luthier.kernels.linears import Linear, PackedLinears
from luthier.kernels.quant.base import Stored


class EightBitLinears(PackedLinears):
    """Frozen layers that are stored in 8 bits, with updates. No weight is ever decoded."""

    def __init__(self, layers: Sequence[Linear]):
        super().__init__(layers)
        assert not any(eight_bits.why_not(_stored(layer)) for layer in layers)

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings the updates up to date."""
        for layer, outs, lows in zip(self.layers, self.outs, self.lows, strict=True):
            if updates := layer.updates:
                all_a = [a_RK * update.scale for update in updates for a_RK in update.all_a]
                all_b = [b_MR for update in updates for b_MR in update.all_b]
                self.tail_RK[lows] = torch.cat(all_a)
                self.tail_MR[outs, lows] = torch.cat(all_b, 1).to(self.tail_MR.dtype)
        self._follow_biases()

    def unpack(self) -> None:
        """Nothing: the layers' weights are where they were."""

    def forward(
        self, wide_x: Tensor, out_TM: Tensor, *, add_to: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        x_TK = wide_x[:, : self.num_in]
        for layer, outs in zip(self.layers, self.outs, strict=True):
            eight_bits.forward(x_TK, _stored(layer), out_TM[:, outs])
        if self.spare:
            torch.mm(self._stays(wide_x, mask), self.tail_RK.T, out=wide_x[:, self.num_in :])
            if mask is not None:
                wide_x[:, self.num_in :].div_(1 - self.dropout)
            out_TM.addmm_(wide_x[:, self.num_in :], self.tail_MR.T)
        for added in (self.bias_M, add_to):
            if added is not None:
                out_TM.add_(added)
        return out_TM

    def input_gradient(self, wide_grad: Tensor, grad_x: Tensor | None, mask: Tensor | None = None) -> None:
        if self.spare:
            torch.mm(wide_grad[:, : self.num_out], self.tail_MR, out=wide_grad[:, self.num_out :])
            if mask is not None:
                wide_grad[:, self.num_out :].div_(1 - self.dropout)
        if grad_x is None:
            return
        parts = [
            eight_bits.input_gradient(wide_grad[:, outs], _stored(layer))
            for layer, outs in zip(self.layers, self.outs, strict=True)
        ]
        torch.sum(torch.stack(parts), 0, out=grad_x)
        if self.spare:
            of_updates = wide_grad[:, self.num_out :] @ self.tail_RK
            grad_x.add_(of_updates if mask is None else of_updates.mul_(mask))

    def _pack(self) -> None:
        """Room for the updates alone: s·A of all layers, and each layer's B in columns of its own."""
        like = _stored(self.layers[0])
        self.tail_RK = torch.zeros(self.spare, self.num_in, dtype=like.dtype, device=like.device)
        self.tail_MR = torch.zeros(self.num_out, self.spare, dtype=like.dtype, device=like.device)


def _stored(layer: Linear) -> Stored:
    assert isinstance(layer.weight_MK, Stored), "only what is stored in 8 bits"
    return layer.weight_MK
