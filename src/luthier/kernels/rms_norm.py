"""RMSNorm (Zhang & Sennrich, 2019, arXiv:1910.07467), with the residual sum before it and its gradient in one pass.

    y = x / rms(x) · (offset + w),   rms(x) = sqrt(mean(x²) + eps)

`reference` is the definition. `forward` and `backward` are what fused layers call: no autograd, outputs given or
made, rows that may be slices of wider buffers (last stride 1). Statistics are fp32 (fp64 for fp64), and the result
is rounded once. CPU: C++ for fp32 and bf16, plain torch otherwise; CUDA: Triton.

    dx = rstd (g w' - x̂ mean(g w' x̂)),   dw = Σ g x̂,   x̂ = x · rstd,  w' = offset + w

Shape suffixes: T tokens, H heads, D normalised features. x is [T, D], or [T, H, D] for a norm per head.
"""

from typing import Any

import torch
from torch import Tensor

from luthier.kernels import native, triton

_FORWARD = "pppppp iii iiiiiiii f"
_BACKWARD = "ppppppp iii iiiiiiii"


def reference(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """The definition, in the dtype of x; x is [..., D]."""
    wide = x.to(_wide(x.dtype))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * (offset + weight_D.to(wide.dtype))).to(x.dtype)


def forward(
    x: Tensor,
    weight_D: Tensor,
    eps: float,
    offset: float = 0.0,
    *,
    residual: Tensor | None = None,
    summed: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The normalised rows and 1 / rms of each, [T] or [T, H] in fp32.

    With `residual`, x + residual is normalised and written to `summed` (which may be either of them).
    Without it, `out` may be x.
    """
    assert (residual is None) == (summed is None), "residual and summed come together"
    if triton.serves(x):
        from luthier.kernels.triton import rms_norm as device

        return device.forward(x, weight_D, eps, offset, residual=residual, summed=summed, out=out)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if (found := native.library_for(x, residual, summed, out)) is None:
        return _plain_forward(x, weight_D, eps, offset, residual, summed, out)
    sizes, scale_D = _sizes(x), _scale(weight_D, offset)
    rstd = torch.empty(sizes[: x.dim() - 1], dtype=torch.float32, device=x.device)
    found.function(f"rms_norm_forward_{native.SUFFIX[x.dtype]}", _FORWARD)(
        x.data_ptr(),
        native.pointer(residual),
        native.pointer(summed),
        scale_D.data_ptr(),
        out.data_ptr(),
        rstd.data_ptr(),
        *sizes,
        *_strides(x),
        *_strides(residual),
        *_strides(summed),
        *_strides(out),
        eps,
    )
    return out, rstd


def backward(
    grad: Tensor,
    x: Tensor,
    rstd: Tensor,
    weight_D: Tensor,
    offset: float = 0.0,
    *,
    add_to: Tensor | None = None,
    out: Tensor | None = None,
    weight_grad: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x, in its dtype, and of the weight, [D] in fp32 or None.

    x is what was normalised (the sum, where there was a residual). `add_to` is the gradient that went past the
    norm, on the residual stream; it is added in the same pass. `out` may be `add_to` or `grad`. The weight's
    gradient is the same bits on every run, with any number of threads.
    """
    if triton.serves(x):
        from luthier.kernels.triton import rms_norm as device

        return device.backward(
            grad, x, rstd, weight_D, offset, add_to=add_to, out=out, weight_grad=weight_grad
        )
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if (found := native.library_for(grad, x, add_to, out)) is None:
        return _plain_backward(grad, x, rstd, weight_D, offset, add_to, out, weight_grad)
    dweight_D = torch.empty(x.shape[-1], dtype=torch.float32, device=x.device) if weight_grad else None
    rstd, scale_D = rstd.contiguous(), _scale(weight_D, offset)
    found.function(f"rms_norm_backward_{native.SUFFIX[x.dtype]}", _BACKWARD)(
        grad.data_ptr(),
        x.data_ptr(),
        rstd.data_ptr(),
        scale_D.data_ptr(),
        native.pointer(add_to),
        out.data_ptr(),
        native.pointer(dweight_D),
        *_sizes(x),
        *_strides(grad),
        *_strides(x),
        *_strides(add_to),
        *_strides(out),
    )
    return out, dweight_D


def _plain_forward(
    x: Tensor,
    weight_D: Tensor,
    eps: float,
    offset: float,
    residual: Tensor | None,
    summed: Tensor | None,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    if residual is not None and summed is not None:
        x = summed.copy_(x + residual)
    wide = _wide(x.dtype)
    # the norm's own reduction reads x once; squaring first would write a copy of it
    rms_square = torch.linalg.vector_norm(x, dim=-1, dtype=wide).square_().div_(x.shape[-1]).add_(eps)
    rstd = rms_square.rsqrt_()
    normed = x.to(wide) * rstd[..., None]
    return out.copy_(normed.mul_(offset + weight_D.to(wide))), rstd


def _plain_backward(
    grad: Tensor,
    x: Tensor,
    rstd: Tensor,
    weight_D: Tensor,
    offset: float,
    add_to: Tensor | None,
    out: Tensor,
    weight_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    wide = _wide(x.dtype)
    normed = x.to(wide) * rstd[..., None]
    product = grad.to(wide) * normed
    scale_D = offset + weight_D.to(wide)
    dweight_D = product.reshape(-1, x.shape[-1]).sum(0) if weight_grad else None
    along = product.mul_(scale_D).mean(-1, keepdim=True)
    dx = (grad.to(wide) * scale_D).sub_(normed.mul_(along)).mul_(rstd[..., None])
    if add_to is not None:
        dx += add_to
    return out.copy_(dx), dweight_D


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _scale(weight_D: Tensor, offset: float) -> Tensor:
    """What multiplies the normalised rows, contiguous and in fp32 as the C++ side wants it."""
    scale_D = weight_D.detach().float().contiguous()
    return scale_D + offset if offset else scale_D


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Tokens, heads, features."""
    shape = x.shape
    return (shape[0], 1, shape[1]) if len(shape) == 2 else (shape[0], shape[1], shape[2])


def _strides(x: Tensor | None) -> tuple[int, int]:
    """Strides of tokens and heads, in elements."""
    if x is None:
        return 0, 0
    strides = x.stride()
    return (strides[0], 0) if len(strides) == 2 else (strides[0], strides[1])


def cases(dtype: torch.dtype = torch.float64) -> list[dict[str, Any]]:
    """Small inputs: no token, one, several; with heads; odd widths; a weight around 0 with offset 1."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    shapes = ((0, 8), (1, 1), (1, 7), (5, 16), (67, 33), (3, 2, 8), (70, 3, 5))
    return [
        {
            "x": normal(*shape),
            "weight_D": normal(shape[-1]) * 0.3 + (1 - offset),
            "eps": eps,
            "offset": offset,
        }
        for shape in shapes
        for offset, eps in ((0.0, 1e-6), (1.0, 1e-2))
    ]
