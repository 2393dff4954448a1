"""Blocks of GGUF files: 32 or 256 weights of a row with their scales, as ggml lays them out, decoded in fp32.

    Q4_0, Q5_0, Q8_0, IQ4_NL    weight = d · value                 one fp16 scale a block
    Q4_1, Q5_1                  weight = d · code + m
    Q2_K, Q4_K, Q5_K            weight = d·scale · code - m·least    6-bit (4-bit) scales for each 16 or 32 weights
    Q3_K, Q6_K, IQ4_XS          weight = d·scale · value
    TQ2_0, MXFP4                weight = d · value                 ternary; powers of two

Every step rounds where ggml's own decoding does, so the bits are the same. Types with code books (IQ1, IQ2, IQ3) and
the rest are decoded by the package `gguf`, on the CPU.

Shape suffixes: N blocks, B bytes of a block, S weights of a block.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.kernels.quant.base import CHUNK, Scheme

NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FLOATS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""4-bit floats (E2M1) times 2."""


@dataclass(frozen=True)
class Gguf(Scheme):
    """The part `blocks` [M, bytes of a row] holds a weight as the file does."""

    kind: str
    """The type, as ggml names it: Q4_K."""
    size: int
    """Weights of a block."""
    num_bytes: int
    """Bytes of a block."""

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        blocks, num_in = parts["blocks"], out_MK.shape[1]
        step = max(1, CHUNK // max(1, num_in))
        for start in range(0, len(out_MK), step):
            rows = blocks[start : start + step]
            if (own := DECODERS.get(self.kind)) is not None:
                values = own(rows.reshape(-1, self.num_bytes)).reshape(len(rows), num_in)
            else:
                values = _by_package(rows, self.kind)
            out_MK[start : start + step] = values
        return out_MK

    def bits(self) -> float:
        return 8 * self.num_bytes / self.size


def _by_package(rows: Tensor, kind: str) -> Tensor:
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            f"weights of the type {kind} are decoded by the package gguf, which is not installed. Install it with: "
            "pip install 'luthier[gguf]'"
        ) from error
    made: Any = gguf.dequantize(rows.cpu().numpy(), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(made).to(rows.device)


def _half(bytes_N2: Tensor) -> Tensor:
    """fp16 numbers [N, 1] in fp32."""
    return bytes_N2.contiguous().view(torch.float16).float()


def _parts(bytes_NB: Tensor, run: int, bits: int) -> Tensor:
    """Codes of b bits: of each run of bytes first the lowest bits of all, then the next. [N, B · 8 / b]."""
    shifts = torch.arange(0, 8, bits, device=bytes_NB.device, dtype=torch.uint8)
    runs = bytes_NB.unflatten(1, (-1, 1, run)) >> shifts[:, None]
    return (runs & 2**bits - 1).flatten(1)


def _bits_in_order(bytes_NB: Tensor) -> Tensor:
    """Single bits, byte by byte from the lowest. [N, 8·B]."""
    places = torch.arange(8, device=bytes_NB.device, dtype=torch.uint8)
    return (bytes_NB[..., None] >> places & 1).flatten(1)


def _looked_up(codes: Tensor, values: tuple[int, ...]) -> Tensor:
    return torch.tensor(values, device=codes.device, dtype=torch.float32)[codes.long()]


def _q4_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * (_parts(b[:, 2:], 16, 4).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _parts(b[:, 4:], 16, 4).float() + _half(b[:, 2:4])


def _q5_0(b: Tensor) -> Tensor:
    codes = _parts(b[:, 6:], 16, 4) | _bits_in_order(b[:, 2:6]) << 4
    return _half(b[:, :2]) * (codes.float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    codes = _parts(b[:, 8:], 16, 4) | _bits_in_order(b[:, 4:8]) << 4
    return _half(b[:, :2]) * codes.float() + _half(b[:, 2:4])


def _q8_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * b[:, 2:].contiguous().view(torch.int8).float()


def _q2_k(b: Tensor) -> Tensor:
    scale = _half(b[:, 80:82]) * (b[:, :16] & 15).float()
    least = _half(b[:, 82:84]) * (b[:, :16] >> 4).float()
    codes = _parts(b[:, 16:80], 32, 2).float().unflatten(1, (16, 16))
    return (scale[..., None] * codes - least[..., None]).flatten(1)


def _q3_k(b: Tensor) -> Tensor:
    """Two bits of a code in `b[:, 32:96]`, the third, inverted, in `b[:, :32]`; scales of 6 bits, less 32."""
    low, high = _parts(b[:, 96:104], 8, 4), _parts(b[:, 104:108], 4, 2)
    scale = _half(b[:, 108:110]) * ((low | high << 4).float() - 32)
    codes = _parts(b[:, 32:96], 32, 2).float() - 4 * (1 - _parts(b[:, :32], 32, 1).float())
    return (scale[..., None] * codes.unflatten(1, (16, 16))).flatten(1)


def _six_bit_scales(b_N12: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and least values of eight groups, whose upper two bits lie with the first four of each."""
    first, second, third = b_N12.unflatten(1, (3, 4)).unbind(1)
    scale = torch.cat([first & 63, third & 15 | first >> 2 & 48], 1)
    least = torch.cat([second & 63, third >> 4 | second >> 2 & 48], 1)
    return scale.float(), least.float()


def _with_least(b: Tensor, codes: Tensor) -> Tensor:
    scale, least = _six_bit_scales(b[:, 4:16])
    scale, least = _half(b[:, :2]) * scale, _half(b[:, 2:4]) * least
    return (scale[..., None] * codes.float().unflatten(1, (8, 32)) - least[..., None]).flatten(1)


def _q4_k(b: Tensor) -> Tensor:
    return _with_least(b, _parts(b[:, 16:], 32, 4))


def _q5_k(b: Tensor) -> Tensor:
    return _with_least(b, _parts(b[:, 48:], 32, 4) | _parts(b[:, 16:48], 32, 1) << 4)


def _q6_k(b: Tensor) -> Tensor:
    scale = _half(b[:, 208:210]) * b[:, 192:208].contiguous().view(torch.int8).float()
    codes = (_parts(b[:, :128], 64, 4) | _parts(b[:, 128:192], 32, 2) << 4).float() - 32
    return (scale[..., None] * codes.unflatten(1, (16, 16))).flatten(1)


def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _looked_up(_parts(b[:, 2:], 16, 4), NONLINEAR)


def _iq4_xs(b: Tensor) -> Tensor:
    """Scales of 6 bits, less 32: four bits in `b[:, 4:8]`, two in `b[:, 2:4]`."""
    low, high = _parts(b[:, 4:8], 1, 4), _parts(b[:, 2:4], 1, 2)
    scale = _half(b[:, :2]) * ((low | high << 4).float() - 32)
    values = _looked_up(_parts(b[:, 8:], 16, 4), NONLINEAR).unflatten(1, (8, 32))
    return (scale[..., None] * values).flatten(1)


def _tq2_0(b: Tensor) -> Tensor:
    return _half(b[:, 64:66]) * (_parts(b[:, :64], 32, 2).float() - 1)


def _mxfp4(b: Tensor) -> Tensor:
    power = b[:, :1].to(torch.int32) - 128
    return torch.ldexp(torch.ones_like(power, dtype=torch.float32), power) * _looked_up(
        _parts(b[:, 1:], 16, 4), FLOATS
    )


DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "TQ2_0": _tq2_0,
    "MXFP4": _mxfp4,
}
"""The types that are decoded here, on any device."""
