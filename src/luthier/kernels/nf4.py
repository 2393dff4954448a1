"""Weights in 4 bits: NF4, the format of QLoRA (Dettmers et al., 2023, arXiv:2305.14314, section 3).

Weights are taken in flat blocks, of 64 unless told otherwise. A block is divided by its largest magnitude (`absmax`);
each quotient becomes the nearest of 16 fixed values, quantiles of a normal distribution scaled to [-1, 1]. Two codes
share a byte, the first in the high half. That is 4.5 bits a weight with absmax in fp32. With double quantisation it is
4.127: absmax less its mean becomes 8 bits, in blocks of 256, on the signed dynamic map of 8-bit optimizers
(arXiv:2110.02861, section 2.1). Other tables of 16 values (FP4, MXFP4) are stored and decoded in the same way.

    weight = table[code] · absmax[block]          absmax = map[code8] · absmax8[block // 256] + offset

What is stored is what bitsandbytes stores, and what is decoded is equal to the bit.

Shape suffixes: M outputs, K inputs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.kernels import native, triton

BLOCK = 64
NESTED_BLOCK = 256
CHUNK = 1 << 18  # weights decoded at once on a CPU: their fp32 values stay in the cache

# Quantiles of the normal distribution as the paper's appendix E lists them: 8 steps below 0, 0 itself, 7 above.
VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True)
class Nested:
    """How the absmax of blocks are themselves stored: 8-bit codes on `table`, scaled per `size` of them."""

    table: Tensor  # [256] fp32
    absmax: Tensor  # [ceil(blocks / size)] fp32
    offset: Tensor  # [] fp32
    size: int = NESTED_BLOCK


@dataclass(frozen=True)
class Packed:
    """A weight in 4 bits. `absmax` is fp32, or uint8 codes where `nested` says how to read them."""

    codes: Tensor  # [M, K / 2] uint8
    absmax: Tensor  # [ceil(M·K / block)]
    table: Tensor  # [16] fp32
    shape: tuple[int, int]
    dtype: torch.dtype  # of the weight it was made from
    nested: Nested | None = None
    block: int = BLOCK

    def to(self, device: torch.device | str) -> "Packed":
        """The same weight on another device."""
        nested = self.nested and replace(
            self.nested,
            table=self.nested.table.to(device),
            absmax=self.nested.absmax.to(device),
            offset=self.nested.offset.to(device),
        )
        codes, absmax, table = (t.to(device) for t in (self.codes, self.absmax, self.table))
        return replace(self, codes=codes, absmax=absmax, table=table, nested=nested)

    def num_bytes(self) -> int:
        """Memory it takes."""
        nested = [self.nested.table, self.nested.absmax, self.nested.offset] if self.nested else []
        return sum(t.numel() * t.element_size() for t in (self.codes, self.absmax, self.table, *nested))


def quantize(
    weight_MK: Tensor, *, double: bool = False, block: int = BLOCK, values: Sequence[float] = VALUES
) -> Packed:
    """The weight in 4 bits. `double`: absmax in 8 bits as well; `values`: what the 16 codes stand for, in any order."""
    num_outputs, width = weight_MK.shape
    if width % 2:
        raise ModelError(
            f"A weight with {width} inputs cannot be stored in NF4: two inputs share a byte, so their number "
            f"must be even. Leave this layer out of the quantisation."
        )
    flat = weight_MK.reshape(-1)
    table = torch.tensor(values, device=flat.device, dtype=torch.float32)
    codes = flat.new_empty(flat.numel() // 2, dtype=torch.uint8)
    scales = flat.new_empty(-(-flat.numel() // block), dtype=torch.float32)
    step = CHUNK // block * block
    for start in range(
        0, flat.numel(), step
    ):  # what is made on the way is as large as a chunk, not as the weight
        blocks = _blocks(flat[start : start + step].float(), block)
        largest = blocks.abs().amax(1)
        scales[start // block :][: len(largest)] = largest
        found = _nearest(_normalised(blocks, largest), table).reshape(-1)[: flat.numel() - start]
        codes[start // 2 :][: len(found) // 2] = found[0::2] << 4 | found[1::2]
    nested = None
    if double:
        scales, nested = _nest(scales)
    packed = codes.view(num_outputs, width // 2)
    return Packed(packed, scales, table, (num_outputs, width), weight_MK.dtype, nested, block)


def dequantize(packed: Packed, out: Tensor | None = None) -> Tensor:
    """The decoded weight [M, K], into `out` if given (any row stride, any float dtype), else in the original dtype."""
    if out is None:
        out = torch.empty(packed.shape, dtype=packed.dtype, device=packed.codes.device)
    if tuple(out.shape) != packed.shape:
        raise ValueError(f"a weight of shape {packed.shape} cannot be decoded into {tuple(out.shape)}")
    if triton.serves(out):
        from luthier.kernels.triton import nf4 as device

        return device.dequantize(packed, out)
    if packed.shape[1] % packed.block == 0 and (found := native.library_for(out)):
        return _dequantize_native(found, packed, out)
    return _dequantize_by_chunks(packed, out)


def reference(packed: Packed) -> Tensor:
    """The definition, in fp32: every code looked up, every block scaled. [M, K]."""
    codes = torch.stack((packed.codes >> 4, packed.codes & 15), -1).reshape(-1)
    blocks = _blocks(packed.table[codes.long()], packed.block)
    values = blocks * absmax(packed)[:, None]
    return values.reshape(-1)[: math.prod(packed.shape)].reshape(packed.shape)


def absmax(packed: Packed) -> Tensor:
    """The largest magnitude of each block as it is used for decoding, fp32 [ceil(M·K / block)]."""
    nested = packed.nested
    if nested is None:
        return packed.absmax
    scales = nested.absmax.repeat_interleave(nested.size)[: len(packed.absmax)]
    return nested.table[packed.absmax.long()] * scales + nested.offset


def _dequantize_native(found: native.Library, packed: Packed, out: Tensor) -> Tensor:
    """One pass in C++: a block's 16 values are made once, then looked up."""
    scales, codes = absmax(packed).contiguous(), packed.codes.contiguous()
    found.function(f"four_bits_{native.SUFFIX[out.dtype]}", "pppp iiii")(
        codes.data_ptr(),
        scales.data_ptr(),
        packed.table.data_ptr(),
        out.data_ptr(),
        *packed.shape,
        packed.block,
        out.stride(0),
    )
    return out


def _dequantize_by_chunks(packed: Packed, out: Tensor) -> Tensor:
    """One look-up a byte, from a table of pairs; whole rows at a time where rows hold whole blocks."""
    num_outputs, width = packed.shape
    if width % packed.block:
        return out.copy_(reference(packed))
    byte = torch.arange(256, device=packed.codes.device)
    pairs = torch.stack((packed.table[byte >> 4], packed.table[byte & 15]), 1)
    per_row, step = width // packed.block, max(1, CHUNK // width)
    scales = absmax(packed).view(num_outputs, per_row, 1)
    for start in range(0, num_outputs, step):
        rows = slice(start, start + step)
        values = pairs.index_select(0, packed.codes[rows].reshape(-1).int()).view(-1, per_row, packed.block)
        out[rows].copy_(values.mul_(scales[rows]).view(-1, width))
    return out


def _blocks(flat: Tensor, size: int) -> Tensor:
    """[blocks, size], the last block filled up with zeros."""
    missing = -len(flat) % size
    return torch.nn.functional.pad(flat, (0, missing)).view(-1, size)


def _normalised(blocks: Tensor, absmax: Tensor) -> Tensor:
    """Each block divided by its largest magnitude; a block of zeros stays zero."""
    inverse = torch.where(absmax > 0, 1 / absmax, torch.zeros_like(absmax))
    return blocks * inverse[:, None]


def _nearest(values: Tensor, table: Tensor) -> Tensor:
    """Index of the nearest entry of a table, uint8."""
    table, index = table.sort(stable=True)
    middles = (table[1:] + table[:-1]) / 2
    found = torch.bucketize(values, middles, out_int32=True)
    return found.to(torch.uint8) if bool((index[1:] > index[:-1]).all()) else index.to(torch.uint8)[found]


def _nest(absmax: Tensor) -> tuple[Tensor, Nested]:
    """Absmax as 8-bit codes, and what decodes them."""
    offset = absmax.mean()
    blocks = _blocks(absmax - offset, NESTED_BLOCK)
    scales = blocks.abs().amax(1)
    table = dynamic_map().to(absmax.device)
    codes = _nearest(_normalised(blocks, scales), table).reshape(-1)[: len(absmax)]
    return codes, Nested(table, scales, offset)


def dynamic_map() -> Tensor:
    """The 256 values of signed dynamic 8-bit numbers, sorted, fp32.

    A number is a sign, e zeros, a one and 6 - e bits of fraction: the magnitude is 10^-e times one of 2^(6-e) equal
    steps between 0.1 and 1 (their middles). 0 and 1 are added; -1 is not among them.
    """
    magnitudes = []
    for num_bits in range(7):
        edges = torch.linspace(0.1, 1, 2**num_bits + 1, dtype=torch.float32)
        magnitudes.append(10.0 ** (num_bits - 6) * (edges[1:] + edges[:-1]) / 2)
    magnitude = torch.cat(magnitudes)
    return torch.cat((-magnitude, magnitude, torch.tensor([0.0, 1.0]))).sort().values


def cases() -> list[dict[str, Any]]:
    """Small weights: whole blocks, rows that cut blocks, a last block that is not full, zeros; both kinds."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 128), (6, 64), (5, 50), (3, 2), (1, 64), (0, 64))
    weights = [torch.randn(shape, generator=generator) * 0.02 for shape in shapes]
    weights.append(torch.zeros(2, 64))
    # above 256 blocks, so that the second level has more than one block of its own
    weights.append(torch.randn(130, 192, generator=generator))
    return [{"weight_MK": weight, "double": double} for weight in weights for double in (False, True)]
