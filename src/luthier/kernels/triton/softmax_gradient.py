"""The elementwise part of the head on a GPU: log-probabilities of targets and their gradient, in place.

    z = shape(logits),  logz = log Σ exp(z),  logp = z[target] - logz
    gradient = grad · (onehot(target) - exp(z - logz)) · d shape / d logits

One program walks one row block by block with the running maximum and sum of an online softmax (Milakov and
Gimelshein, 2018, arXiv:1805.02867), so a vocabulary of any size is read once for logp and once more for the gradient.
A target outside the vocabulary gives NaN, never a read outside the row.

Shape suffixes: C predictions of a chunk, V vocabulary.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.kernels.triton.launch import block, check, jit, on_device, options, tl, triton

if TYPE_CHECKING:
    from luthier.kernels.softmax_gradient import LogitShape

COLUMNS = 4096  # of one block of the vocabulary


@jit
def _tanh(x):
    """To a few units in the last place everywhere: a series near 0, where 1 - exp(..) would cancel."""
    square = x * x
    near = x * (
        1.0 + square * (-0.33333334 + square * (0.13333334 + square * (-0.053968254 + square * 0.021869488)))
    )
    decay = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - decay) / (1.0 + decay)
    far = tl.where(x < 0, -far, far)
    return tl.where(square < 0.0625, near, far)


@jit
def _shaped(logits, scale, softcap, CAPPED: tl.constexpr):
    shaped = logits.to(tl.float32) * scale
    if CAPPED:
        shaped = _tanh(shaped / softcap) * softcap
    return shaped


@jit
def _load_shaped(row_ptr, column, vocabulary, scale, softcap, CAPPED: tl.constexpr):
    inside = column < vocabulary
    shaped = _shaped(tl.load(row_ptr + column, inside, 0.0), scale, softcap, CAPPED)
    return tl.where(inside, shaped, float("-inf"))


@jit
def _log_normaliser(row_ptr, vocabulary, scale, softcap, CAPPED: tl.constexpr, BLOCK: tl.constexpr):
    highest = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        shaped = _load_shaped(row_ptr, start + tl.arange(0, BLOCK), vocabulary, scale, softcap, CAPPED)
        new_highest = tl.maximum(highest, tl.max(shaped, 0))
        # of nothing but -inf so far: subtract 0 instead, or exp(-inf + inf) would be NaN
        base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(shaped - base), 0)
        highest = new_highest
    base = tl.where(highest == float("-inf"), 0.0, highest)
    return base + tl.log(total)


@jit
def _target_logit(row_ptr, target, vocabulary, scale, softcap, CAPPED: tl.constexpr):
    index = target + tl.zeros([1], tl.int64)  # a block of one: masks cannot be scalars
    inside = (index >= 0) & (index < vocabulary)
    return _shaped(tl.load(row_ptr + index, inside, float("nan")), scale, softcap, CAPPED)


@jit
def _write_gradient(row_ptr, column, vocabulary, target, logz, grad, scale, softcap, CAPPED: tl.constexpr):
    shaped = _shaped(tl.load(row_ptr + column, column < vocabulary, 0.0), scale, softcap, CAPPED)
    gradient = tl.where(column == target, 1.0, 0.0) - tl.exp(shaped - logz)
    gradient = gradient * (grad * scale)
    if CAPPED:
        ratio = shaped / softcap
        gradient = gradient * (1.0 - ratio * ratio)
    tl.store(row_ptr + column, gradient.to(row_ptr.dtype.element_ty), column < vocabulary)


@jit
def _row_kernel(
    logits_ptr,
    target_ptr,
    grad_ptr,
    logp_ptr,
    logz_ptr,
    vocabulary,
    stride,
    scale,
    softcap,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """logp and logz of one row; with `grad_ptr` the row becomes its gradient while it is still in the cache."""
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * stride
    target = tl.load(target_ptr + row)
    one = tl.arange(0, 1)
    # before anything is overwritten; the reductions below make every warp wait for it
    target_logit = _target_logit(row_ptr, target, vocabulary, scale, softcap, CAPPED)
    logz = _log_normaliser(row_ptr, vocabulary, scale, softcap, CAPPED, BLOCK)
    tl.store(logp_ptr + row + one, target_logit - logz)
    tl.store(logz_ptr + row + one, logz)
    if grad_ptr is not None:
        grad = tl.load(grad_ptr + row).to(tl.float32)
        for start in range(0, vocabulary, BLOCK):
            column = start + tl.arange(0, BLOCK)
            _write_gradient(row_ptr, column, vocabulary, target, logz, grad, scale, softcap, CAPPED)


@jit
def _gradient_kernel(
    logits_ptr,
    logz_ptr,
    target_ptr,
    grad_ptr,
    vocabulary,
    blocks,
    stride,
    scale,
    softcap,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) // blocks
    row_ptr = logits_ptr + row.to(tl.int64) * stride
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    target, logz = tl.load(target_ptr + row), tl.load(logz_ptr + row)
    grad = tl.load(grad_ptr + row).to(tl.float32)
    _write_gradient(row_ptr, column, vocabulary, target, logz, grad, scale, softcap, CAPPED)


def forward(logits_CV: Tensor, target_C: Tensor, shape: "LogitShape") -> tuple[Tensor, Tensor]:
    """Log-probability of each target and each row's log-normaliser, both [C] in fp32."""
    return _rows(logits_CV, target_C, None, shape)


def gradient_(
    logits_CV: Tensor, logz_C: Tensor, target_C: Tensor, grad_C: Tensor, shape: "LogitShape"
) -> Tensor:
    """The logits' memory, now holding the gradient of Σ grad · logp with respect to them."""
    check(logits_CV)
    num_rows, vocabulary = logits_CV.shape
    columns = min(COLUMNS, block(vocabulary))
    blocks = triton.cdiv(vocabulary, columns)
    if num_rows:
        with on_device(logits_CV):
            _gradient_kernel[(num_rows * blocks,)](
                logits_CV,
                logz_C.contiguous(),
                target_C.contiguous(),
                grad_C.contiguous(),
                vocabulary,
                blocks,
                logits_CV.stride(0),
                shape.scale,
                shape.softcap or 0.0,
                CAPPED=shape.softcap is not None,
                BLOCK=columns,
                **options(columns),
            )
    return logits_CV


def logp_and_gradient_(
    logits_CV: Tensor, target_C: Tensor, coefficient_C: Tensor, shape: "LogitShape"
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [C] in fp32, and the logits' memory holding the gradient of Σ coefficient · logp."""
    return _rows(logits_CV, target_C, coefficient_C, shape)[0], logits_CV


def _rows(
    logits_CV: Tensor, target_C: Tensor, grad_C: Tensor | None, shape: "LogitShape"
) -> tuple[Tensor, Tensor]:
    check(logits_CV)
    num_rows, vocabulary = logits_CV.shape
    logp_C = torch.empty(num_rows, dtype=torch.float32, device=logits_CV.device)
    logz_C = torch.empty_like(logp_C)
    columns = min(COLUMNS, block(vocabulary))
    if num_rows:
        with on_device(logits_CV):
            _row_kernel[(num_rows,)](
                logits_CV,
                target_C.contiguous(),
                grad_C.contiguous() if grad_C is not None else None,
                logp_C,
                logz_C,
                vocabulary,
                logits_CV.stride(0),
                shape.scale,
                shape.softcap or 0.0,
                CAPPED=shape.softcap is not None,
                BLOCK=columns,
                **options(columns),
            )
    return logp_C, logz_C
