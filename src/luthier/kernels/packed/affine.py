"""Integers in groups with a scale and a zero point each: what GPTQ, AWQ and compressed-tensors store.

    weight[m, k] = (code[m, k] - zero[m, g]) · scale[m, g],      g = the group of input k

computed in fp32, where both factors and nearly every product are exact, and rounded once. GPTQ is arXiv:2210.17323, AWQ
arXiv:2306.00978. Where 4-bit codes have one zero point for all, a code stands for one of 16 values, so they are decoded
by the kernels of NF4.

Shape suffixes: M outputs, K inputs, G groups of a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.kernels import nf4
from luthier.kernels.packed.bits import apart
from luthier.kernels.quant.base import Scheme, row_chunks

BLOCKS = (1024, 512, 256, 128, 64, 32, 16)


@dataclass(frozen=True)
class Affine(Scheme):
    """The parts: `codes` [M, K·b / 8] (bits end to end, lowest first), `scale` [M, G], `zero` [M, G] unless `middle` is
    given, and `group_of` [K] where groups are not runs of the same length."""

    num_bits: int
    middle: int | None = None
    """The zero point of all groups. Codes of 4 bits then lie with the first of two in the high half of a byte."""

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        group_of, middle = parts.get("group_of"), self.middle
        num_in = out_MK.shape[1]
        if self.num_bits == 4 and middle is not None and group_of is None:
            group = num_in // parts["scale"].shape[1]
            if (block := next((size for size in BLOCKS if group % size == 0), None)) is not None:
                return _looked_up(parts, out_MK, middle, group, block)
        for rows in row_chunks(out_MK):
            codes = self._codes(parts["codes"][rows])[:, :num_in].float()
            scale = parts["scale"][rows].float()
            zero = torch.full_like(scale, middle) if middle is not None else parts["zero"][rows].float()
            if group_of is not None:
                out_MK[rows] = (codes - zero.index_select(1, group_of)) * scale.index_select(1, group_of)
                continue
            codes = codes.unflatten(1, (scale.shape[1], -1))
            out_MK[rows] = ((codes - zero[..., None]) * scale[..., None]).flatten(1)
        return out_MK

    def bits(self) -> float:
        return float(self.num_bits)

    def _codes(self, bytes_MB: Tensor) -> Tensor:
        if self.num_bits == 4 and self.middle is not None:
            bytes_MB = halves_swapped(bytes_MB)
        return apart(bytes_MB, self.num_bits)


def _looked_up(parts: Mapping[str, Tensor], out_MK: Tensor, middle: int, group: int, block: int) -> Tensor:
    """By the kernels of NF4, whose blocks are powers of two that divide the group."""
    num_out, num_in = out_MK.shape
    table = torch.arange(16, device=out_MK.device, dtype=torch.float32) - middle
    scale = parts["scale"].float().repeat_interleave(group // block, 1).flatten()
    packed = nf4.Packed(parts["codes"], scale, table, (num_out, num_in), out_MK.dtype, None, block)
    return nf4.dequantize(packed, out_MK)


def halves_swapped(bytes_MB: Tensor) -> Tensor:
    """Each byte with its two halves exchanged."""
    return bytes_MB >> 4 | bytes_MB << 4
