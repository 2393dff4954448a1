"""INT8: each row of a weight as signed bytes and one scale, as the weights of LLM.int8() (arXiv:2208.07339, section 2).

    weight = code · scale[row],   scale = max |row| / 127

Only weights are stored so; products are computed in the model's own precision.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.config.settings import settings
from luthier.kernels.quant.base import Scheme, row_chunks

TINY = torch.finfo(torch.float32).tiny  # a row of zeros is divided by it


@settings
class INT8(Scheme):
    """Whole bytes with a scale for each row: 8 bits a weight, nearly without damage."""

    def encode(self, weight_MK: Tensor) -> dict[str, Tensor]:
        codes_MK = torch.empty(weight_MK.shape, dtype=torch.int8, device=weight_MK.device)
        scale_M = weight_MK.new_empty(len(weight_MK), dtype=torch.float32)
        for rows in row_chunks(weight_MK):
            wide = weight_MK[rows].float()
            scale_M[rows] = wide.abs().amax(1) / 127
            codes_MK[rows] = (wide / scale_M[rows, None].clamp(min=TINY)).round_().to(torch.int8)
        return {"codes": codes_MK, "scale": scale_M}

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        return torch.mul(parts["codes"], parts["scale"][:, None], out=out_MK)

    def error(self) -> float:
        return 0.015

    def bits(self) -> float:
        return 8.0
