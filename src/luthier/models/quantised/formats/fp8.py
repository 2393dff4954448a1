"""FP8 in blocks, as DeepSeek-V3 (arXiv:2412.19437, section 3.3) and Qwen3 store it.

weight = code (E4M3) · weight_scale_inv[row // 128, column // 128]
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.kernels.quant.fp8 import FP8
from luthier.models.quantised.formats.base import Format, Weight, need, unfit

METHODS = ("fp8",)
SIDES = (32, 64, 128, 256)


class _Fp8(Format):
    marks = ("weight_scale_inv",)
    parts = ("weight",)
    unused = ("activation_scale", "input_scale")

    def __init__(self, side: int | None):
        self.side = side
        self.about = f"fp8, blocks of {side} by {side}" if side else "fp8"

    def weight(self, name: str, found: Mapping[str, Tensor]) -> Weight:
        codes_MK, scale = need(name, found, "weight", "weight_scale_inv")
        return eight_bit_floats(name, codes_MK, scale, self.side)


def eight_bit_floats(name: str, codes_MK: Tensor, scale: Tensor, side: int | None) -> Weight:
    """A weight of 8-bit floats with one scale, a scale for each row, or for each block of `side` squared."""
    if codes_MK.dtype != torch.float8_e4m3fn or codes_MK.dim() != 2:
        raise unfit(name, f"codes of the type {codes_MK.dtype}, not float8_e4m3fn")
    num_out, num_in = codes_MK.shape
    if side is not None and scale.shape == (-(-num_out // side), -(-num_in // side)):
        return Weight(FP8(block=side), {"codes": codes_MK, "scale": scale}, (num_out, num_in))  # pyright: ignore[reportArgumentType]
    if scale.numel() not in (1, num_out):
        raise unfit(name, f"scales {list(scale.shape)} for a weight of {num_out} by {num_in}")
    scale_M = scale.flatten().expand(num_out).contiguous()
    return Weight(FP8(), {"codes": codes_MK, "scale": scale_M}, (num_out, num_in))


def square(shape: Any) -> int | None:
    """The side of the blocks that a config names. Raises ModelError if they are not squares that can be read."""
    if shape is None:
        return None
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] not in SIDES:
        sides = ", ".join(map(str, SIDES))
        raise ModelError(
            f"the model is stored as fp8 in blocks of {shape}; squares with a side of {sides} are read."
        )
    return shape[0]


def read(config: Mapping[str, Any]) -> Format:
    """Raises ModelError for other 8-bit floats and blocks that are not square."""
    if (kind := config.get("fmt", "e4m3")) != "e4m3":
        raise ModelError(f"the model is stored as fp8 of the kind {kind!r}, which is not read here: e4m3 is.")
    return _Fp8(square(config.get("weight_block_size")))
