"""MXFP4: 4-bit floats (E2M1) in blocks of 32 that share a power of two (OCP Microscaling 1.0; arXiv:2310.10537).

    weight = value[code] · 2^(exponent[block] - 127),   exponent = floor(log2 max |block|) - 2 + 127

What is above the largest value, 6, becomes 6. Two codes share a byte, the first in the high half.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.config.settings import settings
from luthier.kernels import nf4
from luthier.kernels.quant.base import Scheme, row_chunks

BLOCK, BIAS = 32, 127
VALUES = tuple(sign * value for sign in (1, -1) for value in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))
MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""Between neighbouring magnitudes. A magnitude in the middle goes to the code that is even."""
EVEN_BELOW = (True, False, True, False, True, False, True)


@settings
class MXFP4(Scheme):
    """4-bit floats in blocks of 32 with a power of two each: 4.25 bits, the format of gpt-oss."""

    def encode(self, weight_MK: Tensor) -> dict[str, Tensor]:
        num_out, num_in = weight_MK.shape
        codes = weight_MK.new_empty(num_out, num_in // 2, dtype=torch.uint8)
        exponents = weight_MK.new_empty(num_out, num_in // BLOCK, dtype=torch.uint8)
        for rows in row_chunks(weight_MK):
            blocks = weight_MK[rows].float().unflatten(1, (-1, BLOCK))
            _, power = torch.frexp(blocks.abs().amax(-1))  # 2^(power-1) <= largest < 2^power
            power = (power - 3).clamp(-BIAS, 128 - 1)
            exponents[rows] = (power + BIAS).to(torch.uint8)
            found = _codes(torch.ldexp(blocks, -power[..., None])).flatten(1)
            codes[rows] = found[:, 0::2] << 4 | found[:, 1::2]
        return {"codes": codes, "exponents": exponents}

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        num_out, num_in = out_MK.shape
        power = parts["exponents"].flatten().to(torch.int32) - BIAS
        scale = torch.ldexp(torch.ones_like(power, dtype=torch.float32), power)
        table = torch.tensor(VALUES, device=out_MK.device)
        packed = nf4.Packed(parts["codes"], scale, table, (num_out, num_in), out_MK.dtype, None, BLOCK)
        return nf4.dequantize(packed, out_MK)

    def error(self) -> float:
        return 0.15

    def bits(self) -> float:
        return 4 + 8 / BLOCK

    def why_not(self, num_out: int, num_in: int) -> str | None:
        return f"its number of inputs is not a multiple of {BLOCK}" if num_in % BLOCK else None


def _codes(scaled: Tensor) -> Tensor:
    """The code of the nearest value."""
    magnitude = scaled.abs()
    code = torch.zeros_like(magnitude, dtype=torch.uint8)
    for middle, even_below in zip(MIDDLES, EVEN_BELOW, strict=True):
        code += (magnitude > middle) if even_below else (magnitude >= middle)
    return code | (scaled < 0).to(torch.uint8) << 3
