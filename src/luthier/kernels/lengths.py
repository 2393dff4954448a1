"""Stacked linear layers of which some have outputs of trained lengths (DoRA; Liu et al., 2024, arXiv:2402.09353).

    z = [x | low]·[W | B]ᵀ        y = g ∘ z + bias        g = m / ‖W + s·B·A‖, constant but for m

so forward is the product of `linears.py` and a factor on each column, and backward begins with that factor:

    dz = g ∘ dy        dm = Σ_tokens dz ∘ z / m

z is taken from the outputs where these are still there, else made again a few rows at a time.

Shape suffixes: T tokens, K inputs, M outputs of all layers.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from luthier.kernels import linears
from luthier.kernels.dora import row_norms
from luthier.kernels.linears import Linear, Linears, LowRank, PackedLinears, stacked_biases
from luthier.kernels.quant.base import Stored

ROWS = 512
"""Rows of z that are made at a time."""


def reference(
    x_TK: Tensor, layers: Sequence[Linear], mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """The definition: each layer alone. Returns [T, M], the outputs side by side."""
    outputs = []
    for layer in layers:
        z = linears.reference(x_TK, [replace(layer, bias_M=None)], mask, dropout)
        if layer.update is not None and layer.update.magnitude_M is not None:
            z = (z * (layer.update.magnitude_M / _norms(layer))).to(z.dtype)
        outputs.append(z if layer.bias_M is None else z + layer.bias_M.to(z.dtype))
    return torch.cat(outputs, -1)


class LengthenedLinears(Linears):
    """Frozen layers in one buffer as `PackedLinears` has them, with lengths."""

    def __init__(self, layers: Sequence[Linear], inner: PackedLinears | None = None):
        """`inner`: the same layers without biases and lengths; made if absent."""
        self.layers = list(layers)
        self.inner = inner or PackedLinears([replace(layer, bias_M=None) for layer in layers])
        self.num_in, self.num_out, self.spare = self.inner.num_in, self.inner.num_out, self.inner.spare
        self.magnitudes = [m for layer in layers if (m := _magnitude(layer)) is not None and m.requires_grad]
        self.biases = [b for layer in layers if (b := layer.bias_M) is not None and b.requires_grad]
        self.parameters = [*self.inner.parameters, *self.magnitudes, *self.biases]
        self.bias_M = stacked_biases(layers)
        self.gain_M = torch.ones(0)

    @torch.no_grad()
    def refresh(self) -> None:
        """Masters into the buffer, and the factors of the lengths that A and B give now."""
        self.inner.refresh()
        self.gain_M = torch.cat([self._gain(layer) for layer in self.layers])
        if self.biases:
            self.bias_M = stacked_biases(self.layers)

    def forward(
        self, wide_x: Tensor, out_TM: Tensor, *, add_to: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        self.inner.dropout = self.dropout
        self.inner.forward(wide_x, out_TM, mask=mask)
        out_TM.mul_(self.gain_M)
        for added in (self.bias_M, add_to):
            if added is not None:
                out_TM.add_(added)
        return out_TM

    def input_gradient(self, wide_grad: Tensor, grad_x: Tensor | None, mask: Tensor | None = None) -> None:
        wide_grad[:, : self.num_out].mul_(self.gain_M)
        self.inner.input_gradient(wide_grad, grad_x, mask)

    def parameter_gradients(
        self, wide_grad: Tensor, wide_x: Tensor, made: Tensor | None = None, mask: Tensor | None = None
    ) -> list[Tensor]:
        gradients = self.inner.parameter_gradients(wide_grad, wide_x, mask=mask)
        if self.magnitudes:
            sums_M = self._sums(wide_grad[:, : self.num_out], wide_x, made, mask)
            for layer, outs in zip(self.layers, self.inner.outs, strict=True):
                magnitude_M = _magnitude(layer)
                if magnitude_M is not None and magnitude_M.requires_grad:
                    gradients.append((sums_M[outs] / magnitude_M.detach()).to(magnitude_M.dtype))
        if self.biases:  # wide_grad is dz by now, and a bias wants dy
            of_biases_M = wide_grad[:, : self.num_out].sum(0, dtype=self.gain_M.dtype) / self.gain_M
            for layer, outs in zip(self.layers, self.inner.outs, strict=True):
                if layer.bias_M is not None and layer.bias_M.requires_grad:
                    gradients.append(of_biases_M[outs].to(layer.bias_M.dtype))
        return gradients

    def unpack(self) -> None:
        self.inner.unpack()

    def _sums(self, grad_TM: Tensor, wide_x: Tensor, made: Tensor | None, mask: Tensor | None) -> Tensor:
        """Σ dz ∘ z over tokens, [M], in at least fp32. `grad_TM` is dz."""
        wide = torch.promote_types(grad_TM.dtype, torch.float32)
        sums_M = torch.zeros(self.num_out, dtype=wide, device=grad_TM.device)
        for start in range(0, len(grad_TM), ROWS):
            rows = slice(start, start + ROWS)
            if made is None:
                z = torch.empty_like(grad_TM[rows], memory_format=torch.contiguous_format)
                z = self.inner.forward(wide_x[rows], z, mask=None if mask is None else mask[rows]).to(wide)
            else:
                z = made[rows].to(wide) if self.bias_M is None else made[rows].to(wide) - self.bias_M
                z = z / self.gain_M
            sums_M += (grad_TM[rows] * z).sum(0)
        return sums_M

    def _gain(self, layer: Linear) -> Tensor:
        """The factor on each output of a layer, in at least fp32: lengths move by less than sixteen bit can tell."""
        wide = torch.promote_types(layer.weight_MK.dtype, torch.float32)
        magnitude_M = _magnitude(layer)
        if magnitude_M is None:
            return torch.ones(layer.weight_MK.shape[0], dtype=wide, device=layer.weight_MK.device)
        return magnitude_M.detach() / _norms(layer)


def _magnitude(layer: Linear) -> Tensor | None:
    return layer.update.magnitude_M if layer.update is not None else None


def _norms(layer: Linear) -> Tensor:
    """‖W + s·B·A‖ of each output of a layer, all its updates added up."""
    weight_MK = layer.weight_MK.weight() if isinstance(layer.weight_MK, Stored) else layer.weight_MK.detach()
    all_a = [a_RK for update in layer.updates for a_RK in update.all_a]
    all_b = [b_MR * update.scale for update in layer.updates for b_MR in update.all_b]
    return row_norms(weight_MK, torch.cat(all_a), torch.cat(all_b, 1), 1.0)


def cases(dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, list[Linear]]]:
    """Those of `linears.cases` that have updates, all of them or only the first with lengths; with a start, too."""
    found = []
    for number, (x, layers) in enumerate(linears.cases(dtype)):
        if not any(layer.update for layer in layers):
            continue
        generator = torch.Generator().manual_seed(number)
        lengthened = []
        for position, layer in enumerate(layers):
            update = layer.update
            if update is not None and (position == 0 or number % 4 != 0):
                update = _with_lengths(update, generator, starts=number % 3 == 0)
            lengthened.append(replace(layer, update=update))
        found.append((x, lengthened))
    return found


def _with_lengths(update: LowRank, generator: torch.Generator, starts: bool) -> LowRank:
    a_RK, b_MR = update.a_RK, update.b_MR
    magnitude_M = torch.rand(len(b_MR), generator=generator, dtype=torch.float64).to(b_MR) + 0.5
    start = (a_RK.flip(0), -b_MR.flip(1)) if starts else None
    return replace(update, start=start, magnitude_M=magnitude_M)
