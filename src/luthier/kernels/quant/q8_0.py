"""Q8_0 of GGUF files: a signed byte a weight and one fp16 scale for 32 of them, as llama.cpp computes with.

    d = max |block| / 127        code = round(weight / d), halves away from zero        weight = fp16(d) · code

To the bit what `gguf.quants` makes of the same fp32 weights.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.config.settings import settings
from luthier.kernels.quant.base import Scheme, row_chunks

BLOCK = 32


@settings
class Q8_0(Scheme):
    """GGUF's Q8_0: 8.5 bits a weight, nearly without damage."""

    def encode(self, weight_MK: Tensor) -> dict[str, Tensor]:
        num_out, num_in = weight_MK.shape
        codes = torch.empty(num_out, num_in, dtype=torch.int8, device=weight_MK.device)
        scale = torch.empty(num_out, num_in // BLOCK, dtype=torch.float16, device=weight_MK.device)
        for rows in row_chunks(weight_MK):
            codes_GS, scale_G1 = q8_codes(weight_MK[rows])
            codes[rows] = codes_GS.to(torch.int8).view(-1, num_in)
            scale[rows] = scale_G1.view(-1, num_in // BLOCK)
        return {"codes": codes, "scale": scale}

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        for rows in row_chunks(out_MK):
            values_GS = parts["codes"][rows].float().view(-1, BLOCK)
            values_GS.mul_(parts["scale"][rows].float().view(-1, 1))
            out_MK[rows] = values_GS.view(-1, out_MK.shape[1])
        return out_MK

    def rounded(self, weight_MK: Tensor, out_MK: Tensor) -> Tensor:
        for rows in row_chunks(weight_MK):
            codes_GS, scale_G1 = q8_codes(weight_MK[rows])
            out_MK[rows] = codes_GS.mul_(scale_G1.float()).view(-1, out_MK.shape[1])
        return out_MK

    def error(self) -> float:
        return 0.0065

    def bits(self) -> float:
        return 8.5

    def why_not(self, num_out: int, num_in: int) -> str | None:
        return f"its number of inputs is not a multiple of {BLOCK}" if num_in % BLOCK else None


def q8_codes(values_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of each block as floats, [G, S], and the scales in fp16, [G, 1]."""
    values_GS = values_MK.float().reshape(-1, BLOCK)
    scale_G1 = values_GS.abs().amax(1, keepdim=True) / 127
    inverse_G1 = torch.where(scale_G1 == 0, scale_G1, 1 / scale_G1)
    scaled_GS = values_GS * inverse_G1
    size_GS = scaled_GS.abs()
    floor_GS = size_GS.floor()
    away_GS = floor_GS + (2 * (size_GS - floor_GS)).floor_()
    return away_GS.copysign_(scaled_GS), scale_G1.half()
