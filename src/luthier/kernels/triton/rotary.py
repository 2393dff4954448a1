"""Rotary position embedding on a GPU: queries and keys in one launch, in place if wished.

    y1 = x1·cos1 - x2·sin1,   y2 = x2·cos2 + x1·sin2        1, 2: the two halves of the first P features of a head

The inverse is the transpose, hence the backward pass: sin1 becomes -sin2 and sin2 becomes -sin1. cos and sin are read
once for all heads that a program turns.

Shape suffixes: T tokens, H query heads, K key heads, D features of a head, P rotated features (P <= D, even).
"""

import torch
from torch import Tensor

from luthier.kernels.triton.launch import ELEMENTS, block, check, jit, on_device, options, tl, triton


@jit
def _rotate_heads(
    x_ptr,
    out_ptr,
    cos_first,
    cos_second,
    sin_first,
    sin_second,
    token,
    head,
    column,
    inside,
    half,
    x_stride_t,
    x_stride_h,
    out_stride_t,
    out_stride_h,
):
    start = token * x_stride_t + head.to(tl.int64) * x_stride_h + column
    first = tl.load(x_ptr + start, inside, 0.0).to(tl.float32)
    second = tl.load(x_ptr + start + half, inside, 0.0).to(tl.float32)
    start = token * out_stride_t + head.to(tl.int64) * out_stride_h + column
    turned_first = (first * cos_first - second * sin_first).to(out_ptr.dtype.element_ty)
    turned_second = (second * cos_second + first * sin_second).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + start, turned_first, inside)
    tl.store(out_ptr + start + half, turned_second, inside)


# fmt: off
@jit
def _rotate_kernel(
    query_ptr, query_out_ptr, key_ptr, key_out_ptr, cos_ptr, sin_ptr,
    num_tokens, query_heads, key_heads, half, query_groups, cos_stride, sin_stride,
    query_stride_t, query_stride_h, query_out_stride_t, query_out_stride_h,
    key_stride_t, key_stride_h, key_out_stride_t, key_out_stride_h,
    INVERSE: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None, None]
    column = tl.arange(0, BLOCK)[None, None, :]
    inside = (token < num_tokens) & (column < half)
    cos_ptr += token * cos_stride + column
    sin_ptr += token * sin_stride + column
    cos_first = tl.load(cos_ptr, inside, 0.0).to(tl.float32)
    cos_second = tl.load(cos_ptr + half, inside, 0.0).to(tl.float32)
    if INVERSE:
        sin_first = -tl.load(sin_ptr + half, inside, 0.0).to(tl.float32)
        sin_second = -tl.load(sin_ptr, inside, 0.0).to(tl.float32)
    else:
        sin_first = tl.load(sin_ptr, inside, 0.0).to(tl.float32)
        sin_second = tl.load(sin_ptr + half, inside, 0.0).to(tl.float32)
    group = tl.program_id(1)
    if group < query_groups:
        head = (group * HEADS + tl.arange(0, HEADS))[None, :, None]
        inside_heads = inside & (head < query_heads)
        _rotate_heads(
            query_ptr, query_out_ptr, cos_first, cos_second, sin_first, sin_second,
            token, head, column, inside_heads, half,
            query_stride_t, query_stride_h, query_out_stride_t, query_out_stride_h,
        )
    else:
        head = ((group - query_groups) * HEADS + tl.arange(0, HEADS))[None, :, None]
        inside_heads = inside & (head < key_heads)
        _rotate_heads(
            key_ptr, key_out_ptr, cos_first, cos_second, sin_first, sin_second,
            token, head, column, inside_heads, half,
            key_stride_t, key_stride_h, key_out_stride_t, key_out_stride_h,
        )
# fmt: on


def rotate(
    x_THD: Tensor, cos_TP: Tensor, sin_TP: Tensor, *, inverse: bool = False, out: Tensor | None = None
) -> Tensor:
    """The heads turned by their positions' angles, into `out` (may be x)."""
    out = torch.empty_like(x_THD, memory_format=torch.contiguous_format) if out is None else out
    _launch(x_THD, out, x_THD[:, :0], out[:, :0], cos_TP, sin_TP, inverse)
    _copy_rest(x_THD, out, cos_TP.shape[1])
    return out


def rotate_both(
    query_THD: Tensor, key_TKD: Tensor, cos_TP: Tensor, sin_TP: Tensor, *, inverse: bool = False
) -> None:
    """Queries and keys turned in place, in one launch."""
    _launch(query_THD, query_THD, key_TKD, key_TKD, cos_TP, sin_TP, inverse)


def _copy_rest(x_THD: Tensor, out_THD: Tensor, rotated: int) -> None:
    in_place = x_THD.data_ptr() == out_THD.data_ptr()
    if rotated < x_THD.shape[2] and not in_place:
        out_THD[:, :, rotated:].copy_(x_THD[:, :, rotated:])


def _launch(
    query_THD: Tensor,
    query_out_THD: Tensor,
    key_TKD: Tensor,
    key_out_TKD: Tensor,
    cos_TP: Tensor,
    sin_TP: Tensor,
    inverse: bool,
) -> None:
    check(query_THD, query_out_THD, key_TKD, key_out_TKD, cos_TP, sin_TP)
    num_tokens, query_heads, key_heads = len(query_THD), query_THD.shape[1], key_TKD.shape[1]
    half = cos_TP.shape[1] // 2
    columns = block(half)
    heads = min(8, block(max(query_heads, key_heads)))
    tokens = max(1, ELEMENTS // (columns * heads))
    query_groups = triton.cdiv(query_heads, heads)
    groups = query_groups + triton.cdiv(key_heads, heads)
    if not (num_tokens and groups and half):
        return
    with on_device(query_THD):
        _rotate_kernel[(triton.cdiv(num_tokens, tokens), groups)](
            query_THD,
            query_out_THD,
            key_TKD,
            key_out_TKD,
            cos_TP,
            sin_TP,
            num_tokens,
            query_heads,
            key_heads,
            half,
            query_groups,
            cos_TP.stride(0),
            sin_TP.stride(0),
            *query_THD.stride()[:2],
            *query_out_THD.stride()[:2],
            *key_TKD.stride()[:2],
            *key_out_TKD.stride()[:2],
            INVERSE=inverse,
            TOKENS=tokens,
            HEADS=heads,
            BLOCK=columns,
            **options(tokens * heads * columns),
        )
