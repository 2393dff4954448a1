"""INT4: whole numbers from -8 to 7 and one scale for a group of weights, as torchao has symmetric integers.

    scale = max |group| / 7.5        code = clamp(round(weight / scale), -8, 7)        weight = code · scale

Its QAT, `Int8DynamicActivationIntxWeightConfig` and ExecuTorch round so (there with 8-bit inputs: `qat.inputs: int8`).
Two codes share a byte; a code lies there plus 8.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from luthier.config.settings import settings
from luthier.kernels.quant.base import Scheme, row_chunks

TINY = torch.finfo(torch.float32).tiny


@settings
class INT4(Scheme):
    """4-bit whole numbers with a scale for each group, as torchao has them."""

    group: Literal[32, 64, 128, 256] = 32
    """Weights that share a scale."""

    def encode(self, weight_MK: Tensor) -> dict[str, Tensor]:
        num_out, num_in = weight_MK.shape
        codes = torch.empty(num_out, num_in // 2, dtype=torch.uint8, device=weight_MK.device)
        scale = torch.empty(num_out, num_in // self.group, dtype=torch.float32, device=weight_MK.device)
        for rows in row_chunks(weight_MK):
            codes_GS, scale_G1 = self._codes(weight_MK[rows])
            even, odd = codes_GS.add_(8).to(torch.uint8).view(-1, 2).unbind(1)
            codes[rows] = (even | odd << 4).view(-1, num_in // 2)
            scale[rows] = scale_G1.view(-1, num_in // self.group)
        return {"codes": codes, "scale": scale}

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        for rows in row_chunks(out_MK):
            packed = parts["codes"][rows].reshape(-1)
            codes_GS = torch.stack([packed & 15, packed >> 4], 1).float().sub_(8).view(-1, self.group)
            out_MK[rows] = codes_GS.mul_(parts["scale"][rows].view(-1, 1)).view(-1, out_MK.shape[1])
        return out_MK

    def rounded(self, weight_MK: Tensor, out_MK: Tensor) -> Tensor:
        for rows in row_chunks(weight_MK):
            codes_GS, scale_G1 = self._codes(weight_MK[rows])
            out_MK[rows] = codes_GS.mul_(scale_G1).view(-1, out_MK.shape[1])
        return out_MK

    def error(self) -> float:
        return 0.13 if self.group > 64 else 0.11

    def bits(self) -> float:
        return 4 + 32 / self.group

    def why_not(self, num_out: int, num_in: int) -> str | None:
        return f"its number of inputs is not a multiple of {self.group}" if num_in % self.group else None

    def _codes(self, weight_MK: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of each group as floats, [G, S], and the scales, [G, 1]."""
        weight_GS = weight_MK.float().reshape(-1, self.group)
        scale_G1 = (weight_GS.abs().amax(1, keepdim=True) / 7.5).clamp_(min=TINY)
        return (weight_GS * (1 / scale_G1)).round_().clamp_(-8, 7), scale_G1
