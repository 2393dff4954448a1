"""dY·B and dYᵀ·low on a GPU, reading dY once.

A program owns a slab of OUTPUTS columns of dY and a range of tokens. The slab's rows of B stay in registers, and so
does its share of dYᵀ·low; each tile of dY adds to that share and gives a partial dY·B, written to memory and summed
over slabs afterwards. Those partial sums are 4·R / (2·OUTPUTS) of dY's bytes, written once and read once: 12 % each
way at rank 16. All sums are in fp32 and in a fixed order.

Shape suffixes: T tokens, M outputs, R rank, S slabs of outputs, G ranges of tokens.
"""

import torch
from torch import Tensor

from luthier.kernels.triton.launch import block, check, jit, on_device, tl, triton

TOKENS = 64  # of one tile
OUTPUTS = 256
PROGRAMS = 528  # at least so many, if there are tokens enough: four for each multiprocessor of the largest GPU of today


@jit
def _backward_kernel(
    grad_ptr,
    b_ptr,
    low_ptr,
    low_grad_ptr,
    b_grad_ptr,
    num_tokens,
    outputs,
    rank,
    tiles,
    grad_stride,
    b_stride,
    low_stride,
    WIDEN: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    RANK: tl.constexpr,
):
    slab, part = tl.program_id(0), tl.program_id(1)
    output = slab * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, RANK)
    small = (output < outputs)[:, None] & (column < rank)[None, :]
    b = tl.load(b_ptr + output.to(tl.int64)[:, None] * b_stride + column[None, :], small, 0.0)
    if WIDEN:
        b = b.to(tl.float32)
    b_grad = tl.zeros([OUTPUTS, RANK], tl.float32)
    for tile in range(tiles):
        token = ((part * tiles + tile) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
        narrow = (token < num_tokens)[:, None] & (column < rank)[None, :]
        low = tl.load(low_ptr + token[:, None] * low_stride + column[None, :], narrow, 0.0)
        inside = (token < num_tokens)[:, None] & (output < outputs)[None, :]
        grad = tl.load(grad_ptr + token[:, None] * grad_stride + output[None, :], inside, 0.0)
        if WIDEN:
            grad, low = grad.to(tl.float32), low.to(tl.float32)
        b_grad += tl.dot(tl.trans(grad), low, input_precision="ieee")
        low_grad = tl.dot(grad, b, input_precision="ieee")
        place = (slab.to(tl.int64) * num_tokens + token)[:, None] * rank + column[None, :]
        tl.store(low_grad_ptr + place, low_grad, narrow)
    place = (part.to(tl.int64) * outputs + output)[:, None] * rank + column[None, :]
    tl.store(b_grad_ptr + place, b_grad, small)


def backward(grad_TM: Tensor, b_MR: Tensor, low_TR: Tensor, *, out: Tensor) -> tuple[Tensor, Tensor]:
    """dY·B in `out`, and dYᵀ·low in fp32."""
    check(grad_TM, b_MR, low_TR, out)
    (num_tokens, outputs), rank = grad_TM.shape, b_MR.shape[1]
    slabs = triton.cdiv(outputs, OUTPUTS)
    all_tiles = triton.cdiv(num_tokens, TOKENS)
    tiles = max(1, all_tiles * slabs // PROGRAMS)  # of one program
    parts = triton.cdiv(all_tiles, tiles)
    low_grad_STR = torch.empty(slabs, num_tokens, rank, dtype=torch.float32, device=grad_TM.device)
    b_grad_GMR = torch.empty(parts, outputs, rank, dtype=torch.float32, device=grad_TM.device)
    if grad_TM.numel():
        with on_device(grad_TM):
            _backward_kernel[(slabs, parts)](
                grad_TM,
                b_MR,
                low_TR,
                low_grad_STR,
                b_grad_GMR,
                num_tokens,
                outputs,
                rank,
                tiles,
                grad_TM.stride(0),
                b_MR.stride(0),
                low_TR.stride(0),
                # the interpreter multiplies bf16 wrongly; a GPU multiplies it exactly
                WIDEN=not grad_TM.is_cuda,
                TOKENS=TOKENS,
                OUTPUTS=OUTPUTS,
                RANK=max(16, block(rank)),  # the least that a matrix unit takes
                num_warps=8,
                num_stages=2,  # what fits the shared memory of a consumer card
                enable_fp_fusion=True,
            )
    return out.copy_(low_grad_STR.sum(0)), b_grad_GMR.sum(0)
