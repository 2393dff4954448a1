"""HQQ: 1 to 8 bits a weight with a fitted zero point, without any data (Badri & Shaji, 2023, mobiusml.github.io).

    weight = scale[group] · (code - zero[group])

The scale spans the group (with 1 bit it is twice the mean distance from the mean, arXiv:1603.05279); the zero point
minimises Σ |weight - decoded|^0.7, which lets single large weights go. Half-quadratic splitting alternates between what
is let go, e, and the zero point:

    e = shrink(weight - decoded)       zero = mean(code - (weight - e) / scale)

Eight codes of b bits lie in b bytes, one byte for each bit of theirs.

Shape suffixes: G groups, S weights of a group.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from luthier.config.settings import settings
from luthier.kernels.quant.base import Scheme, row_chunks

POWER, STEPS, BETA, GROWTH = 0.7, 20, 10.0, 1.01
ERRORS = {1: 0.61, 2: 0.46, 3: 0.22, 4: 0.1, 5: 0.05, 6: 0.025, 8: 0.008}


@settings
class HQQ(Scheme):
    """1 to 8 bits with a scale and a fitted zero point for each group."""

    num_bits: Literal[1, 2, 3, 4, 5, 6, 8] = 4
    """Bits of a code."""

    group: Literal[16, 32, 64, 128, 256] = 64
    """Weights that share a scale and a zero point."""

    def encode(self, weight_MK: Tensor) -> dict[str, Tensor]:
        planes, scales, zeros = [], [], []
        for rows in row_chunks(weight_MK):
            weight_GS = weight_MK[rows].float().reshape(-1, self.group)
            scale_G1, zero_G1 = self._fit(weight_GS)
            codes_GS = self._codes(weight_GS, scale_G1, zero_G1).to(torch.uint8)
            planes.append(_planes(codes_GS.view(-1, 8), self.num_bits))
            scales.append(scale_G1.bfloat16())
            zeros.append(zero_G1.half())
        empty = weight_MK.new_empty(0, self.num_bits, dtype=torch.uint8)
        return {
            "planes": torch.cat([empty, *planes]),
            "scale": torch.cat([empty[:, :1].bfloat16(), *scales]),
            "zero": torch.cat([empty[:, :1].half(), *zeros]),
        }

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        per_row = out_MK.shape[1] // self.group
        bytes_per_row = out_MK.shape[1] // 8
        for rows in row_chunks(out_MK):
            groups = slice(rows.start * per_row, rows.stop * per_row)
            planes = parts["planes"][rows.start * bytes_per_row : rows.stop * bytes_per_row]
            codes_GS = _joined(planes).view(-1, self.group).float()
            values_GS = (codes_GS - parts["zero"][groups].float()) * parts["scale"][groups].float()
            out_MK[rows] = values_GS.view(-1, out_MK.shape[1])
        return out_MK

    def error(self) -> float:
        return ERRORS[self.num_bits]

    def bits(self) -> float:
        return self.num_bits + 32 / self.group

    def why_not(self, num_out: int, num_in: int) -> str | None:
        return f"its number of inputs is not a multiple of {self.group}" if num_in % self.group else None

    def _fit(self, weight_GS: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each group, as exact as they are stored."""
        low, high = weight_GS.amin(1, keepdim=True), weight_GS.amax(1, keepdim=True)
        if self.num_bits == 1:
            middle = weight_GS.mean(1, keepdim=True)
            spread = (weight_GS - middle).abs().mean(1, keepdim=True)
            low, high = middle - spread, middle + spread
        scale_G1 = ((high - low) / (2**self.num_bits - 1)).bfloat16().float()
        scale_G1 = torch.where(scale_G1 > 0, scale_G1, torch.ones_like(scale_G1))
        zero_G1 = best_G1 = (-low / scale_G1).half().float()
        least = self._damage(weight_GS, scale_G1, zero_G1)
        beta = BETA
        for _ in range(STEPS):
            codes_GS = self._codes(weight_GS, scale_G1, zero_G1)
            left_GS = weight_GS - (codes_GS - zero_G1) * scale_G1
            size_GS = left_GS.abs()
            shrunk = (size_GS - size_GS.clamp(min=1e-8).pow(POWER - 1) / beta).clamp(min=0)
            zero_G1 = (codes_GS - (weight_GS - left_GS.sign() * shrunk) / scale_G1).mean(1, keepdim=True)
            zero_G1 = zero_G1.half().float()
            damage = self._damage(weight_GS, scale_G1, zero_G1)
            best_G1 = torch.where(damage < least, zero_G1, best_G1)
            least, beta = torch.minimum(least, damage), beta * GROWTH
        return scale_G1, best_G1

    def _codes(self, weight_GS: Tensor, scale_G1: Tensor, zero_G1: Tensor) -> Tensor:
        return (weight_GS / scale_G1 + zero_G1).round().clamp(0, 2**self.num_bits - 1)

    def _damage(self, weight_GS: Tensor, scale_G1: Tensor, zero_G1: Tensor) -> Tensor:
        decoded = (self._codes(weight_GS, scale_G1, zero_G1) - zero_G1) * scale_G1
        return (weight_GS - decoded).abs().pow(POWER).sum(1, keepdim=True)


def _planes(codes_N8: Tensor, num_bits: int) -> Tensor:
    """Eight codes as one byte for each of their bits, [N, num_bits]."""
    places = 2 ** torch.arange(8, device=codes_N8.device, dtype=torch.uint8)
    bits = [(codes_N8 >> bit & 1).mul(places).sum(1, dtype=torch.uint8) for bit in range(num_bits)]
    return torch.stack(bits, 1)


def _joined(planes_NB: Tensor) -> Tensor:
    """The codes [N, 8] again."""
    places = torch.arange(8, device=planes_NB.device, dtype=torch.uint8)
    codes_N8 = torch.zeros(len(planes_NB), 8, dtype=torch.uint8, device=planes_NB.device)
    for bit in range(planes_NB.shape[1]):
        codes_N8 |= (planes_NB[:, bit, None] >> places & 1) << bit
    return codes_N8
