"""FP8: each row of a weight as 8-bit floats (E4M3, arXiv:2209.05433) and one scale.

    weight = code · scale[row],   scale = max |row| / 448

Only weights are stored so; products are computed in the model's own precision.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.config.settings import settings
from luthier.kernels.quant.base import Scheme, row_chunks

LARGEST = 448.0
TINY = torch.finfo(torch.float32).tiny


@settings
class FP8(Scheme):
    """8-bit floats with a scale for each row: small weights keep their relative precision."""

    def encode(self, weight_MK: Tensor) -> dict[str, Tensor]:
        codes_MK = torch.empty(weight_MK.shape, dtype=torch.float8_e4m3fn, device=weight_MK.device)
        scale_M = weight_MK.new_empty(len(weight_MK), dtype=torch.float32)
        for rows in row_chunks(weight_MK):
            wide = weight_MK[rows].float()
            scale_M[rows] = wide.abs().amax(1) / LARGEST
            wide = wide / scale_M[rows, None].clamp(min=TINY)
            codes_MK[rows] = wide.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        return {"codes": codes_MK, "scale": scale_M}

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        for rows in row_chunks(out_MK):
            out_MK[rows] = parts["codes"][rows].float().mul_(parts["scale"][rows, None])
        return out_MK

    def error(self) -> float:
        return 0.03

    def bits(self) -> float:
        return 8.0
