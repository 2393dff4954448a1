"""A linear layer for the few rows of a decoding step: y = s · (x·Wᵀ + low·Bᵀ + bias) (+ y).

`reference` is the definition. `forward` reads the weight where it lies, once, in fp32 or bf16, and needs no
rearranged copy of it; so weights that training goes on changing are always the current ones. `low` and B are an
adapter's: low = scale · x·Aᵀ. Activations are fp32 whatever the weight is. A row's result is the same bits however
many rows there are, up to `most_rows`; from there on, torch's product is the faster one.

Shape suffixes: M rows, K inputs, N outputs, R rank.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels import native, processor

MAX_ROWS = 96
"""Most rows for which the C++ side beats torch's matrix product (measured on two AVX2 cores)."""
MAX_ROWS_BESIDE_BF16 = 16
"""The same of bf16 weights where the processor multiplies bf16 itself: seen on one core with AVX512_BF16; with matrix
units not measured but reckoned. Up to about so many rows, reading the weights takes longer than the arithmetic."""

_SIGNATURE = "pppppp iiii iiiii iii f"


def reference(
    x_MK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None = None,
    *,
    low_MR: Tensor | None = None,
    b_NR: Tensor | None = None,
    scale: float = 1.0,
    add_to: Tensor | None = None,
) -> Tensor:
    """The definition, in the dtype of x."""
    y_MN = F.linear(x_MK, weight_NK.to(x_MK.dtype), None if bias_N is None else bias_N.to(x_MK.dtype))
    if low_MR is not None and b_NR is not None:
        y_MN = y_MN + F.linear(low_MR, b_NR.to(x_MK.dtype))
    return y_MN * scale if add_to is None else add_to + y_MN * scale


def forward(
    x_MK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None = None,
    *,
    low_MR: Tensor | None = None,
    b_NR: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor,
    add: bool = False,
) -> Tensor:
    """Writes the product into `out`, or adds it to what is there; all of x, low and out in one dtype."""
    assert (low_MR is None) == (b_NR is None), "low and B come together"
    found = native.library_for(x_MK, low_MR, out) if x_MK.dtype == torch.float32 else None
    if (
        found is None
        or len(x_MK) > most_rows(weight_NK.dtype)
        or not (_readable(weight_NK) and _readable(b_NR))
    ):
        return _plain(x_MK, weight_NK, bias_N, low_MR, b_NR, scale, out, add)
    bias_N = None if bias_N is None else bias_N.detach().float().contiguous()
    found.function("skinny_linear", _SIGNATURE)(
        x_MK.data_ptr(),
        weight_NK.data_ptr(),
        native.pointer(low_MR),
        native.pointer(b_NR),
        native.pointer(bias_N),
        out.data_ptr(),
        len(x_MK),
        *weight_NK.shape,
        0 if b_NR is None else b_NR.shape[1],
        x_MK.stride(0),
        weight_NK.stride(0),
        0 if low_MR is None else low_MR.stride(0),
        0 if b_NR is None else b_NR.stride(0),
        out.stride(0),
        weight_NK.dtype == torch.bfloat16,
        b_NR is not None and b_NR.dtype == torch.bfloat16,
        add,
        scale,
    )
    return out


def most_rows(weights: torch.dtype) -> int:
    """Up to how many rows the C++ side is the faster one on this processor."""
    instructions = processor.has_bf16_vectors() or processor.has_matrix_units()
    if weights == torch.bfloat16 and instructions and processor.multiplies_bf16():
        return MAX_ROWS_BESIDE_BF16
    return MAX_ROWS


def _readable(weight: Tensor | None) -> bool:
    return weight is None or native.library_for(weight) is not None


def _plain(
    x_MK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    low_MR: Tensor | None,
    b_NR: Tensor | None,
    scale: float,
    out: Tensor,
    add: bool,
) -> Tensor:
    dtype = x_MK.dtype
    if weight_NK.dtype == torch.bfloat16 and dtype == torch.float32 and _computes_bf16(x_MK):
        y_MN = F.linear(x_MK.bfloat16(), weight_NK).to(dtype)  # many rows, and hardware made for it
        target = out if add else out.zero_()
        target.add_(y_MN, alpha=scale)
    else:
        torch.addmm(out, x_MK, weight_NK.to(dtype).T, beta=float(add), alpha=scale, out=out)
    if low_MR is not None and b_NR is not None:
        out.addmm_(low_MR, b_NR.to(dtype).T, alpha=scale)
    return out if bias_N is None else out.add_(bias_N.to(dtype), alpha=scale)


def _computes_bf16(x: Tensor) -> bool:
    return x.device.type != "cpu" or processor.multiplies_bf16()


def cases(dtype: torch.dtype = torch.float64) -> list[dict[str, Any]]:
    """Small inputs: no row, one, a tile and more; inner sizes around the vector width and past a block."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    shapes = (
        (0, 8, 4),
        (1, 1, 1),
        (2, 7, 5),
        (3, 64, 12),
        (7, 33, 9),
        (13, 2500, 6),
        (5, 640, 9),
        (3, 1280, 17),
        (2, 2560, 8),
        (32, 40, 31),
    )
    return [
        {
            "x_MK": normal(rows, inner),
            "weight_NK": normal(outputs, inner) / inner**0.5,
            "bias_N": normal(outputs) if extras else None,
            "low_MR": normal(rows, 5) if extras else None,
            "b_NR": normal(outputs, 5) if extras else None,
            "scale": 0.5 if extras else 1.0,
            "add_to": normal(rows, outputs) if add else None,
        }
        for rows, inner, outputs in shapes
        for extras in (False, True)
        for add in (False, True)
    ]
