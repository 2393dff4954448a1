"""What all Triton kernels share: the language itself, sizes of tiles, the device they run on.

Sizes are pure functions of the tensor's width, never of a trial run: a step costs the same the first time, and two
runs round the same way.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.kernels.triton import DTYPES

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ModelError(
        "A GPU kernel was asked for, but the package triton is not installed, so it cannot be compiled. "
        "Install it (pip install triton; Linux only), or let the op run in plain torch."
    ) from error

__all__ = ["ELEMENTS", "block", "check", "jit", "on_device", "options", "row_strides", "rows", "tl", "triton"]

# Typed loosely: a checker would take `constexpr` parameters at their word and refuse the plain numbers they are given.
jit: Callable[[Callable[..., Any]], Any] = triton.jit
ELEMENTS = 2048  # of one tile: 16 for each thread of four warps


def block(width: int) -> int:
    """The smallest power of two that holds `width`: tiles have no other sizes."""
    return triton.next_power_of_2(max(width, 1))


def rows(columns: int) -> int:
    """How many rows of `columns` (a power of two) make one tile; at least 1."""
    return max(1, ELEMENTS // columns)


def options(elements: int) -> dict[str, int | bool]:
    """How a tile of so many elements is compiled: 16 elements a thread, within 4 and 16 warps.

    Multiplying and adding in one rounding is asked for in words, because Triton's default changes with its version.
    """
    return {"num_warps": max(4, min(16, elements // 512)), "enable_fp_fusion": True}


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Launches go to the tensor's own GPU, whatever the process's current one is."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def check(*tensors: Tensor | None) -> None:
    """The layout every kernel counts on: a dtype it computes in, features next to each other in memory."""
    for tensor in tensors:
        if tensor is not None:
            assert tensor.dtype in DTYPES, tensor.dtype
            assert tensor.stride(-1) == 1 or tensor.shape[-1] <= 1, tensor.stride()


def row_strides(tensor: Tensor | None) -> tuple[int, int]:
    """Strides of tokens and of heads, in elements; [T, D] has no heads: 0. Of nothing: 0, 0."""
    if tensor is None:
        return 0, 0
    return tensor.stride(0), tensor.stride(1) if tensor.dim() == 3 else 0
