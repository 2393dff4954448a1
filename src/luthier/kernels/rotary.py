"""Rotary position embedding (RoPE; Su et al., 2021, arXiv:2104.09864), half-split, in one pass and in place.

    y_i       = x_i cos_i - x_{i+P/2} sin_i
    y_{i+P/2} = x_{i+P/2} cos_{i+P/2} + x_i sin_{i+P/2}        for i < P/2; features from P on pass through

`reference` is the definition; `rotate` is what fused layers call, forwards and, with `inverse`, backwards: the
gradient of a product with a matrix is the product with its transpose. The tables are those of transformers' rotary
modules: [T, P], halves repeated, perhaps scaled. Rows may be slices of wider buffers (last stride 1).

Shape suffixes: T tokens, H heads, D head size, P rotated features (P ≤ D, even).
"""

from typing import Any

import torch
from torch import Tensor

from luthier.kernels import native, triton

_SIGNATURE = "pppp iiii iiiiii f"


def reference(x_THD: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """The definition, in the dtype of x."""
    num_rotated = cos_TP.shape[-1]
    turned, rest = x_THD[..., :num_rotated], x_THD[..., num_rotated:]
    first, second = turned.chunk(2, -1)
    other = torch.cat((-second, first), -1)
    return torch.cat((turned * cos_TP[:, None] + other * sin_TP[:, None], rest), -1).to(x_THD.dtype)


def rotate(
    x_THD: Tensor, cos_TP: Tensor, sin_TP: Tensor, *, inverse: bool = False, out: Tensor | None = None
) -> Tensor:
    """The rotated heads, in `out` (which may be x). `inverse` multiplies by the transpose: the backward pass."""
    if triton.serves(x_THD):
        from luthier.kernels.triton import rotary as device

        return device.rotate(x_THD, cos_TP, sin_TP, inverse=inverse, out=out)
    assert cos_TP.shape[-1] % 2 == 0 and cos_TP.shape[-1] <= x_THD.shape[-1]
    out = torch.empty(x_THD.shape, dtype=x_THD.dtype, device=x_THD.device) if out is None else out
    found, table = native.library_for(x_THD, out), cos_TP.dtype
    if (
        found is None
        or native.library_for(cos_TP, sin_TP) is None
        or table not in (x_THD.dtype, torch.float32)
    ):
        return _plain(x_THD, cos_TP, sin_TP, inverse, out)
    name = f"rotary_{native.SUFFIX[x_THD.dtype]}_{native.SUFFIX[table]}"
    found.function(name, _SIGNATURE)(
        *map(native.pointer, (x_THD, cos_TP, sin_TP, out)),
        *x_THD.shape,
        cos_TP.shape[-1],
        *x_THD.stride()[:2],
        cos_TP.stride(0),
        sin_TP.stride(0),
        *out.stride()[:2],
        -1.0 if inverse else 1.0,
    )
    return out


def _plain(x_THD: Tensor, cos_TP: Tensor, sin_TP: Tensor, inverse: bool, out: Tensor) -> Tensor:
    wide, num_rotated = torch.promote_types(x_THD.dtype, torch.float32), cos_TP.shape[-1]
    first, second = x_THD[..., :num_rotated].to(wide).chunk(2, -1)
    cos_first, cos_second = cos_TP[:, None].to(wide).chunk(2, -1)
    sin_first, sin_second = sin_TP[:, None].to(wide).chunk(2, -1)
    if inverse:
        sin_first, sin_second = -sin_second, -sin_first
    # both halves are formed before either is written: `out` may be x
    turned_first = (first * cos_first).addcmul_(second, sin_first, value=-1)
    turned_second = (second * cos_second).addcmul_(first, sin_second)
    half = num_rotated // 2
    out[..., :half], out[..., half:num_rotated] = turned_first, turned_second
    if out.data_ptr() != x_THD.data_ptr():
        out[..., num_rotated:] = x_THD[..., num_rotated:]
    return out


def cases(dtype: torch.dtype = torch.float64) -> list[dict[str, Any]]:
    """Small inputs: no token, one, several; all features turned, some, none; halves that differ; scaled tables."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    shapes = ((0, 2, 8, 8), (1, 1, 2, 2), (5, 3, 16, 16), (7, 2, 20, 12), (3, 2, 5, 4), (4, 1, 6, 0))
    made = []
    for tokens, heads, size, rotated in shapes:
        for repeated in (True, False):
            angle = normal(tokens, rotated // 2)
            angles = torch.cat((angle, angle if repeated else angle + 0.5), -1)
            tables = {"cos_TP": (1.2 * angles.cos()).to(dtype), "sin_TP": (1.2 * angles.sin()).to(dtype)}
            made.append({"x_THD": normal(tokens, heads, size).to(dtype), **tables})
    return made
