"""RMS normalisation on a GPU: one read and one write of the stream each way.

    y = x · rstd · (offset + w),   rstd = 1 / sqrt(mean(x²) + eps)
    dx = rstd · (g·w' - x̂ · mean(g·w'·x̂)) + add_to,   dw = Σ_rows g·x̂,   w' = offset + w, x̂ = x·rstd

A row is one (token, head) pair; a tile holds whole rows, so statistics need no second pass. The weight's gradient
is summed by each program over its own rows and then over programs, in a fixed order: no atomics, the same bits
each time.

Shape suffixes: T tokens, H heads, D features of one norm, P programs.
"""

import torch
from torch import Tensor

from luthier.kernels.triton.launch import block, check, jit, on_device, options, row_strides, rows, tl, triton

PARTIAL_SUMS = 512  # programs that share the weight's gradient: enough to fill the largest GPU of today


@jit
def _row_offsets(row, heads, stride_t, stride_h):
    # 64 bits: a stream of 262k tokens by 16k features passes 2^31 elements
    return (row // heads).to(tl.int64) * stride_t + (row % heads).to(tl.int64) * stride_h


@jit
def _forward_kernel(
    x_ptr,
    residual_ptr,
    summed_ptr,
    weight_ptr,
    out_ptr,
    rstd_ptr,
    num_rows,
    heads,
    width,
    x_stride_t,
    x_stride_h,
    residual_stride_t,
    residual_stride_h,
    summed_stride_t,
    summed_stride_h,
    out_stride_t,
    out_stride_h,
    eps,
    offset,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < num_rows)[:, None] & (column < width)
    x = tl.load(x_ptr + _row_offsets(row, heads, x_stride_t, x_stride_h)[:, None] + column, inside, 0.0)
    x = x.to(tl.float32)
    if residual_ptr is not None:
        start = _row_offsets(row, heads, residual_stride_t, residual_stride_h)[:, None]
        x += tl.load(residual_ptr + start + column, inside, 0.0).to(tl.float32)
        # what is normalised is the stream as it is stored, so that the backward pass sees the same numbers
        stored = x.to(summed_ptr.dtype.element_ty)
        start = _row_offsets(row, heads, summed_stride_t, summed_stride_h)[:, None]
        tl.store(summed_ptr + start + column, stored, inside)
        x = stored.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, 1) / width + eps)
    tl.store(rstd_ptr + row, rstd, row < num_rows)
    weight = offset + tl.load(weight_ptr + column, column < width, 0.0).to(tl.float32)
    y = x * rstd[:, None] * weight
    start = _row_offsets(row, heads, out_stride_t, out_stride_h)[:, None]
    tl.store(out_ptr + start + column, y.to(out_ptr.dtype.element_ty), inside)


@jit
def _backward_kernel(
    grad_ptr,
    x_ptr,
    rstd_ptr,
    weight_ptr,
    add_ptr,
    out_ptr,
    partial_ptr,
    num_rows,
    heads,
    width,
    tiles,
    grad_stride_t,
    grad_stride_h,
    x_stride_t,
    x_stride_h,
    add_stride_t,
    add_stride_h,
    out_stride_t,
    out_stride_h,
    offset,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)[None, :]
    weight = offset + tl.load(weight_ptr + column, column < width, 0.0).to(tl.float32)
    weight_grad = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in range(tiles):
        row = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (row < num_rows)[:, None] & (column < width)
        start = _row_offsets(row, heads, grad_stride_t, grad_stride_h)[:, None]
        grad = tl.load(grad_ptr + start + column, inside, 0.0).to(tl.float32)
        start = _row_offsets(row, heads, x_stride_t, x_stride_h)[:, None]
        x = tl.load(x_ptr + start + column, inside, 0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, row < num_rows, 0.0)[:, None]
        unit = x * rstd
        through = grad * weight
        dx = rstd * (through - unit * (tl.sum(through * unit, 1) / width)[:, None])
        if add_ptr is not None:
            start = _row_offsets(row, heads, add_stride_t, add_stride_h)[:, None]
            dx += tl.load(add_ptr + start + column, inside, 0.0).to(tl.float32)
        start = _row_offsets(row, heads, out_stride_t, out_stride_h)[:, None]
        tl.store(out_ptr + start + column, dx.to(out_ptr.dtype.element_ty), inside)
        weight_grad += grad * unit
    if partial_ptr is not None:
        column = tl.arange(0, BLOCK)
        start = program.to(tl.int64) * width
        tl.store(partial_ptr + start + column, tl.sum(weight_grad, 0), column < width)


def forward(
    x: Tensor,
    weight: Tensor,
    eps: float,
    offset: float = 0.0,
    *,
    residual: Tensor | None = None,
    summed: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x (plus `residual`, the sum going to `summed`) normalised, and 1 / rms in fp32 [T] or [T, H]."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    check(x, weight, residual, summed, out)
    assert (residual is None) == (summed is None), "a residual needs a place for its sum"
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    heads, width, num_rows = (x.shape[1] if x.dim() == 3 else 1), x.shape[-1], rstd.numel()
    columns = block(width)
    tile = rows(columns)
    if num_rows:
        with on_device(x):
            _forward_kernel[(triton.cdiv(num_rows, tile),)](
                x,
                residual,
                summed,
                weight,
                out,
                rstd,
                num_rows,
                heads,
                width,
                *row_strides(x),
                *row_strides(residual),
                *row_strides(summed),
                *row_strides(out),
                eps,
                offset,
                ROWS=tile,
                BLOCK=columns,
                **options(tile * columns),
            )
    return out, rstd


def backward(
    grad: Tensor,
    x: Tensor,
    rstd: Tensor,
    weight: Tensor,
    offset: float = 0.0,
    *,
    add_to: Tensor | None = None,
    out: Tensor | None = None,
    weight_grad: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Gradient of what was normalised (plus `add_to`), and that of the weight in fp32 if asked for."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    check(grad, x, weight, add_to, out)
    rstd = rstd.contiguous()
    heads, width, num_rows = (x.shape[1] if x.dim() == 3 else 1), x.shape[-1], rstd.numel()
    columns = block(width)
    tile = rows(columns)
    tiles = triton.cdiv(triton.cdiv(num_rows, tile), PARTIAL_SUMS) if weight_grad else 1
    programs = triton.cdiv(num_rows, tile * max(tiles, 1))
    partial_PD = torch.empty(programs, width, dtype=torch.float32, device=x.device) if weight_grad else None
    if num_rows:
        with on_device(x):
            _backward_kernel[(programs,)](
                grad,
                x,
                rstd,
                weight,
                add_to,
                out,
                partial_PD,
                num_rows,
                heads,
                width,
                tiles,
                *row_strides(grad),
                *row_strides(x),
                *row_strides(add_to),
                *row_strides(out),
                offset,
                ROWS=tile,
                BLOCK=columns,
                **options(tile * columns),
            )
    return out, partial_PD.sum(0) if partial_PD is not None else None
