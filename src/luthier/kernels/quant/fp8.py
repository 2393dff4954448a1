"""FP8: a weight as 8-bit floats (E4M3, arXiv:2209.05433) and one scale for each row, or for each square block.

    weight = code · scale[row] or scale[row // b, column // b],   scale = max |row or block| / 448

Blocks of 128 by 128 are those of DeepSeek-V3 (arXiv:2412.19437, section 3.3). Only weights are stored so; products are
computed in the model's own precision.

Shape suffixes: M outputs, K inputs, P and Q blocks down and across.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from luthier.config.settings import settings
from luthier.kernels.quant.base import CHUNK, Scheme, row_chunks

LARGEST = 448.0
TINY = torch.finfo(torch.float32).tiny


@settings
class FP8(Scheme):
    """8-bit floats with a scale for each row or block: small weights keep their relative precision."""

    block: Literal[32, 64, 128, 256] | None = None
    """Side of the square blocks that share a scale; absent: each row has one."""

    def encode(self, weight_MK: Tensor) -> dict[str, Tensor]:
        codes_MK = torch.empty(weight_MK.shape, dtype=torch.float8_e4m3fn, device=weight_MK.device)
        scale = self._scales(weight_MK)
        for rows in self._chunks(weight_MK):
            wide = weight_MK[rows].float() / self._spread(scale, rows, weight_MK.shape[1]).clamp(min=TINY)
            codes_MK[rows] = wide.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        return {"codes": codes_MK, "scale": scale}

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        for rows in self._chunks(out_MK):
            scale = self._spread(parts["scale"], rows, out_MK.shape[1])
            out_MK[rows] = parts["codes"][rows].float().mul_(scale)
        return out_MK

    def error(self) -> float:
        return 0.03

    def bits(self) -> float:
        return 8.0

    def why_no_rows(self, num_in: int) -> str | None:
        return f"rows share scales in squares of {self.block}" if self.block is not None else None

    def _chunks(self, weight_MK: Tensor) -> list[slice]:
        """Rows, as many at once as a chunk has room for, and whole blocks of them."""
        if self.block is None:
            return list(row_chunks(weight_MK))
        step = max(1, CHUNK // max(1, weight_MK.shape[1] * self.block)) * self.block
        num_out = len(weight_MK)
        return [slice(start, min(start + step, num_out)) for start in range(0, num_out, step)]

    def _scales(self, weight_MK: Tensor) -> Tensor:
        """fp32 [M] or [P, Q]."""
        found = [weight_MK.new_empty(0, *(() if self.block is None else (self._across(weight_MK),))).float()]
        for rows in self._chunks(weight_MK):
            wide = weight_MK[rows].float().abs()
            if self.block is not None:
                wide = pad(wide, (0, -wide.shape[1] % self.block, 0, -wide.shape[0] % self.block))
                wide = wide.unflatten(1, (-1, self.block)).unflatten(0, (-1, self.block)).amax((1, 3))
            else:
                wide = wide.amax(1)
            found.append(wide / LARGEST)
        return torch.cat(found)

    def _across(self, weight_MK: Tensor) -> int:
        return -(-weight_MK.shape[1] // (self.block or 1))

    def _spread(self, scale: Tensor, rows: slice, num_in: int) -> Tensor:
        """The scale of every weight in these rows, or of every row, fp32."""
        if self.block is None:
            return scale[rows, None].float()
        scale = scale[rows.start // self.block : -(-rows.stop // self.block)].float()
        spread = scale.repeat_interleave(self.block, 0).repeat_interleave(self.block, 1)
        return spread[: rows.stop - rows.start, :num_in]
