"""Stacked linear layers whose weights are rounded while they are trained; `rounding.py` has the formulas.

The rounded weights of a group lie in a buffer that all groups of a model share, and are made when they are needed and
another group has used it since: once in a forward pass, once in a backward pass. Adapters are part of what is rounded,
so they take no columns of the product; the spare columns only carry x̂·(s·A)ᵀ and dy·B from pass to pass.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from luthier.kernels.linears import Linear, Linears
from luthier.kernels.quant.base import Stored
from luthier.kernels.rounding import Rounding, total_weight
from luthier.kernels.workspace import Workspace

SHARED = "rounded weights"
"""The name of the buffer."""


class RoundedLinears(Linears):
    """Layers that are rounded alike, trained whole, by adapters, or not at all. Adapters' inputs are never dropped."""

    def __init__(self, layers: Sequence[Linear], rounding: Rounding, workspace: Workspace):
        self.layers, self.rounding, self.workspace = list(layers), rounding, workspace
        self.num_in = layers[0].weight_MK.shape[1]
        self.outs = _slices([layer.weight_MK.shape[0] for layer in layers])
        self.lows = _slices([layer.update.columns if layer.update else 0 for layer in layers])
        self.num_out, self.spare = self.outs[-1].stop, self.lows[-1].stop
        found: list[Tensor | None] = []
        for layer in layers:
            assert isinstance(layer.weight_MK, Tensor), "what is stored cannot be trained"
            masters = (layer.update.a_RK, layer.update.b_MR) if layer.update else (None, None)
            found += [layer.weight_MK, layer.bias_M, *masters]
        self.parameters = [tensor for tensor in found if tensor is not None and tensor.requires_grad]

    def refresh(self) -> None:
        """Weights are read and rounded anew when they are next needed."""
        self.workspace.forget(SHARED, self)

    def forward(
        self, wide_x: Tensor, out_TM: Tensor, *, add_to: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        seen_TK = self._seen(wide_x)
        for layer, lows in zip(self.layers, self.lows, strict=True):
            if layer.update is not None:
                a_RK = torch.cat(layer.update.all_a) * layer.update.scale
                torch.mm(seen_TK, a_RK.to(seen_TK.dtype).T, out=wide_x[:, self.num_in :][:, lows])
        torch.mm(seen_TK, self._filled().T, out=out_TM)
        for layer, outs in zip(self.layers, self.outs, strict=True):
            if layer.bias_M is not None:
                out_TM[:, outs].add_(layer.bias_M.detach())
        return out_TM if add_to is None else out_TM.add_(add_to)

    def input_gradient(self, wide_grad: Tensor, grad_x: Tensor | None, mask: Tensor | None = None) -> None:
        for layer, outs, lows in zip(self.layers, self.outs, self.lows, strict=True):
            if layer.update is not None:
                b_MR = torch.cat(layer.update.all_b, 1).to(wide_grad.dtype)
                torch.mm(wide_grad[:, outs], b_MR, out=wide_grad[:, self.num_out :][:, lows])
        if grad_x is not None:
            torch.mm(wide_grad[:, : self.num_out], self._filled(), out=grad_x)

    def parameter_gradients(
        self, wide_grad: Tensor, wide_x: Tensor, made: Tensor | None = None, mask: Tensor | None = None
    ) -> list[Tensor]:
        seen_TK = self._seen(wide_x)
        gradients = []
        for layer, outs, lows in zip(self.layers, self.outs, self.lows, strict=True):
            grad_TM, update = wide_grad[:, outs], layer.update
            if layer.weight_MK.requires_grad:
                gradients.append(grad_TM.T @ seen_TK)
            if layer.bias_M is not None and layer.bias_M.requires_grad:
                wide = torch.promote_types(grad_TM.dtype, torch.float32)
                gradients.append(grad_TM.sum(0, dtype=wide).to(layer.bias_M.dtype))
            if update is None:
                continue
            trained = slice(lows.start, lows.start + len(update.a_RK))
            if update.a_RK.requires_grad:
                grad_a = wide_grad[:, self.num_out :][:, trained].T @ seen_TK
                gradients.append(grad_a.to(update.a_RK.dtype) * update.scale)
            if update.b_MR.requires_grad:
                low_TR = wide_x[:, self.num_in :][:, trained]
                gradients.append((grad_TM.T @ low_TR).to(update.b_MR.dtype))
        return gradients

    def _seen(self, wide_x: Tensor) -> Tensor:
        return self.rounding.seen(wide_x[:, : self.num_in])

    @torch.no_grad()
    def _filled(self) -> Tensor:
        like = self.layers[0].weight_MK
        assert isinstance(like, Tensor)
        size = self.num_out, self.num_in
        return self.workspace.hold(SHARED, self, *size, like=like.detach(), fill=self._round)

    def _round(self, buffer: Tensor) -> None:
        for layer, outs in zip(self.layers, self.outs, strict=True):
            update = layer.update
            factors = (
                None
                if update is None
                else (torch.cat(update.all_a), torch.cat(update.all_b, 1), update.scale)
            )
            assert not isinstance(layer.weight_MK, Stored)
            self.rounding.weight(total_weight(layer.weight_MK, factors), buffer[outs])


def _slices(sizes: Sequence[int]) -> list[slice]:
    return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
