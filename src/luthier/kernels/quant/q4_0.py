"""Q4_0 of GGUF files: 4 bits a weight and one fp16 scale for 32 of them, as llama.cpp computes with.

    d = (the largest weight of the block, with its sign) / -8
    code = min(15, ⌊weight / d + 8.5⌋)        weight = fp16(d) · (code - 8)

To the bit what `gguf.quants` makes of the same fp32 weights: codes by the scale before it is rounded, values by the
rounded one. The largest weight of a block lies on the grid; the grid reaches an eighth less far on the other side.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.config.settings import settings
from luthier.kernels.quant.base import Scheme, row_chunks

BLOCK, HALF = 32, 16


@settings
class Q4_0(Scheme):
    """GGUF's Q4_0: 4.5 bits a weight, for llama.cpp on small machines."""

    def encode(self, weight_MK: Tensor) -> dict[str, Tensor]:
        num_out, num_in = weight_MK.shape
        codes = torch.empty(num_out, num_in // 2, dtype=torch.uint8, device=weight_MK.device)
        scale = torch.empty(num_out, num_in // BLOCK, dtype=torch.float16, device=weight_MK.device)
        for rows in row_chunks(weight_MK):
            codes_GS, scale_G1 = _codes(weight_MK[rows])
            low, high = codes_GS.to(torch.uint8).split(HALF, 1)  # the first half of a block in the lower bits
            codes[rows] = (low | high << 4).view(-1, num_in // 2)
            scale[rows] = scale_G1.view(-1, num_in // BLOCK)
        return {"codes": codes, "scale": scale}

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        for rows in row_chunks(out_MK):
            packed = parts["codes"][rows].view(-1, HALF)
            codes_GS = torch.cat([packed & 15, packed >> 4], 1).float().sub_(8)
            out_MK[rows] = codes_GS.mul_(parts["scale"][rows].float().view(-1, 1)).view(-1, out_MK.shape[1])
        return out_MK

    def rounded(self, weight_MK: Tensor, out_MK: Tensor) -> Tensor:
        for rows in row_chunks(weight_MK):
            codes_GS, scale_G1 = _codes(weight_MK[rows])
            out_MK[rows] = codes_GS.sub_(8).mul_(scale_G1.float()).view(-1, out_MK.shape[1])
        return out_MK

    def error(self) -> float:
        return 0.095

    def bits(self) -> float:
        return 4.5

    def why_not(self, num_out: int, num_in: int) -> str | None:
        return f"its number of inputs is not a multiple of {BLOCK}" if num_in % BLOCK else None


def _codes(weight_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Codes 0 to 15 of each block as floats, [G, S], and the scales in fp16, [G, 1]."""
    weight_GS = weight_MK.float().reshape(-1, BLOCK)
    first_G1 = weight_GS.abs().argmax(1, keepdim=True)  # the first of several that are as large
    scale_G1 = weight_GS.gather(1, first_G1) / -8
    inverse_G1 = torch.where(scale_G1 == 0, scale_G1, 1 / scale_G1)
    codes_GS = (weight_GS * inverse_G1).add_(8.5).trunc_().clamp_(max=15)
    return codes_GS, scale_G1.half()
