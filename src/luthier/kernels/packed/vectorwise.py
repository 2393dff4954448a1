"""Whole bytes with the largest magnitude of each row, as bitsandbytes stores LLM.int8() (arXiv:2208.07339, section 2).

    weight = code · largest[row] · (1/127)

in this order and in fp32, so that the bits are those of the library.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from luthier.kernels.quant.base import Scheme, row_chunks

PART = 7.874015718698502e-3
"""1/127 as the library rounds it."""


@dataclass(frozen=True)
class Vectorwise(Scheme):
    """The parts: `codes` [M, K] int8 and `largest` [M] fp32."""

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        for rows in row_chunks(out_MK):
            out_MK[rows] = parts["codes"][rows].float().mul_(parts["largest"][rows, None].float()).mul_(PART)
        return out_MK

    def bits(self) -> float:
        return 8.0
