"""What llama.cpp's processor code makes of the numbers that it multiplies with weights of a type.

A weight in few bits is not decoded there: its input is rounded, block by block, so that whole numbers can be
multiplied. To which type is the field `vec_dot_type` of the table `type_traits_cpu` in ggml/src/ggml-cpu/ggml-cpu.c;
how it is rounded, `quantize_row_*` in ggml-cpu/quants.c and, the same but for ties, in ggml-cpu/arch (as of the
sources of llama-cpp-python 0.3.36).
"""

from collections.abc import Callable

import torch
from gguf.constants import GGMLQuantizationType as Kind
from torch import Tensor


def eight_by_32(x: Tensor) -> Tensor:
    """Q8_0: a block of 32 becomes whole multiples of its largest size / 127, and that scale is kept in fp16."""
    blocks = x.unflatten(-1, (-1, 32))
    largest = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, 127 / largest, 0.0)
    return ((blocks * inverse).round() * (largest / 127).half().float()).flatten(-2)


def eight_by_256(x: Tensor) -> Tensor:
    """Q8_K: a block of 256 becomes whole multiples of -1/127 of its largest value, and that scale is kept in fp32."""
    blocks = x.unflatten(-1, (-1, 256))
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    inverse = torch.where(largest != 0, -127 / largest, 0.0)
    scale = torch.where(largest != 0, 1 / inverse, 0.0)
    return ((blocks * inverse).round().clamp(max=127) * scale).flatten(-2)


def _to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(dtype).float()


ROUNDED: dict[Kind, Callable[[Tensor], Tensor]] = {
    Kind.F16: _to(torch.float16),
    Kind.BF16: _to(torch.bfloat16),
    # Q8_1, for Q4_1 and Q5_1, is Q8_0 with the sum of each block in fp16, whose rounding is not imitated here
    **dict.fromkeys((Kind.Q4_0, Kind.Q5_0, Kind.Q8_0, Kind.IQ4_NL, Kind.Q4_1, Kind.Q5_1), eight_by_32),
    **dict.fromkeys((Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_XS), eight_by_256),
    **dict.fromkeys((Kind.IQ2_XXS, Kind.IQ2_XS, Kind.IQ2_S, Kind.IQ3_XXS, Kind.IQ3_S), eight_by_256),
}
"""For a type of weights, what its inputs are rounded to: fp32 to fp32. Types that are not here do not round."""
