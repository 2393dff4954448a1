"""Numbers in 8 or 4 bits, in flat blocks with a scale each (Dettmers et al., 2021, arXiv:2110.02861, section 2).

A block is divided by its largest magnitude; each quotient becomes the nearest value of a fixed map. Two codes of
4 bits share a byte, the first in the high half.

Maps: `dynamic` has a digit for the power of ten and spends the remaining bits on a fraction, so that small values
keep their precision (section 2.1 of the same paper); `unsigned` is the same without a sign; `linear` has evenly spaced
values above zero, for 4 bits (Li et al., 2023, arXiv:2309.01432, section 4.1). Squares are divided by, so of these
only zero itself is ever stored as zero.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """How values are stored: `bits` each (8 or 4) on a map, in blocks of `block`."""

    bits: int
    block: int
    map: str

    def codes(self, numel: int) -> tuple[int, int]:
        """Bytes of codes and number of scales for so many values."""
        blocks = -(-numel // self.block)
        return blocks * self.block * self.bits // 8, blocks

    def encode(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Codes in bytes and scales in fp32; the last block is filled up with zeros."""
        _, blocks = self.codes(value.numel())
        padded = torch.zeros(blocks * self.block, dtype=torch.float32, device=value.device)
        padded[: value.numel()] = value.reshape(-1)
        rows = padded.view(blocks, self.block)
        scales = rows.abs().amax(dim=1)
        table = values_of(self.map, self.bits).to(value.device)
        borders = (table[1:] + table[:-1]) / 2
        if table[0] == 0:
            borders[0] = 0.0
        unit = rows / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        codes = torch.bucketize(unit.view(-1), borders, out_int32=True).to(torch.uint8)
        if self.bits == 4:
            codes = (codes[0::2] << 4) | codes[1::2]
        return codes, scales

    def decode(self, codes: Tensor, scales: Tensor, like: Tensor) -> Tensor:
        """The values, of the shape and dtype of `like`."""
        if self.bits == 4:
            codes = torch.stack((codes >> 4, codes & 15), dim=1).view(-1)
        table = values_of(self.map, self.bits).to(codes.device)
        rows = table[codes.int()].view(len(scales), self.block) * scales[:, None]
        return rows.view(-1)[: like.numel()].view(like.shape).to(like.dtype)


@cache
def values_of(name: str, bits: int) -> Tensor:
    """The ascending values of a map, in fp32 on the CPU. Do not change it."""
    if name == "linear":
        count = 2**bits
        return torch.arange(1, count + 1, dtype=torch.float32) / count
    signed = name == "dynamic"
    magnitudes: list[float] = []
    for power in range(bits - 1):  # each ten times as large as the one before, and twice as fine
        count = 2**power if signed else 2 ** (power + 1)
        edges = [0.1 + 0.9 * i / count for i in range(count + 1)]
        scale = 10.0 ** (power - bits + 2)
        magnitudes += [scale * (low + high) / 2 for low, high in pairwise(edges)]
    values = [0.0, 1.0, *magnitudes, *([-m for m in magnitudes] if signed else ())]
    return torch.tensor(sorted(values), dtype=torch.float32)
