"""Log-probabilities of N predictions without a [T, V] tensor: the head, chunk by chunk.

    logp_n = log softmax(shape(hidden_n · Wᵀ + b))[target_n]

where `shape` is what the model does to its logits (a scale, a soft cap). Two tiers:

- `token_logprobs`: any loss; saves only hidden states and log-normalisers, and recomputes a chunk's logits
  in the backward pass.
- `linear_loss`: losses of the form Σ c_n · logp_n with c known beforehand (cross-entropy, REINFORCE); its
  gradient is formed in the forward pass, while the chunk's logits are at hand.

Shape suffixes: N predictions, D hidden size, V vocabulary, C predictions of one chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels import softmax_gradient
from luthier.kernels.head import (
    Gradients,
    HeadWeight,
    chunk_memory,
    chunk_rows,
    chunks,
    raw_logits,
    remember,
    remembered,
    wide,
)
from luthier.kernels.softmax_gradient import LogitShape


def reference(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor, shape: LogitShape
) -> Tensor:
    """The definition: all logits at once."""
    logp_NV = torch.log_softmax(shape(F.linear(hidden_ND, weight_VD, bias_V)), -1)
    return logp_NV.gather(1, target_N[:, None])[:, 0]


def token_logprobs(
    hidden_ND: Tensor,
    weight_VD: HeadWeight,
    bias_V: Tensor | None,
    target_N: Tensor,
    shape: LogitShape | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Log-probability of each target, [N] in fp32, differentiable in hidden states, weight and bias."""
    chunk = chunk or chunk_rows(hidden_ND, weight_VD.shape[0])
    return _TokenLogprobs.apply(hidden_ND, weight_VD, bias_V, target_N, shape or LogitShape(), chunk)  # pyright: ignore[reportReturnType]


def linear_loss(
    hidden_ND: Tensor,
    weight_VD: HeadWeight,
    bias_V: Tensor | None,
    target_N: Tensor,
    coefficient_N: Tensor,
    shape: LogitShape | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss Σ coefficient_n · logp_n, and logp [N] detached. Costs no recomputation in the backward pass."""
    chunk = chunk or chunk_rows(hidden_ND, weight_VD.shape[0])
    return _LinearLoss.apply(  # pyright: ignore[reportReturnType]
        hidden_ND, weight_VD, bias_V, target_N, coefficient_N, shape or LogitShape(), chunk
    )


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: HeadWeight,
        bias_V: Tensor | None,
        target_N: Tensor,
        shape: LogitShape,
        chunk: int,
    ) -> Tensor:
        logp_N = hidden_ND.new_empty(len(target_N), dtype=wide(hidden_ND))
        logz_N, memory_CV = torch.empty_like(logp_N), chunk_memory(hidden_ND, weight_VD, chunk)
        for rows in chunks(len(target_N), chunk):
            logits_CV = raw_logits(hidden_ND[rows], weight_VD, bias_V, memory_CV)
            logp_N[rows], logz_N[rows] = softmax_gradient.forward(logits_CV, target_N[rows], shape)
        remember(ctx, hidden_ND, weight_VD, bias_V, target_N, logz_N)
        ctx.shape, ctx.chunk = shape, chunk
        return logp_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, target_N, logz_N = remembered(ctx)
        total = Gradients(ctx.needs_input_grad, hidden_ND, weight_VD, bias_V)
        memory_CV = chunk_memory(hidden_ND, weight_VD, ctx.chunk)
        for rows in chunks(len(target_N), ctx.chunk):
            logits_CV = raw_logits(hidden_ND[rows], weight_VD, bias_V, memory_CV)
            grad_CV = softmax_gradient.gradient_(
                logits_CV, logz_N[rows], target_N[rows], grads[0][rows], ctx.shape
            )
            total.add(rows, hidden_ND[rows], grad_CV)
        return *total.given_out(), None, None, None


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: HeadWeight,
        bias_V: Tensor | None,
        target_N: Tensor,
        coefficient_N: Tensor,
        shape: LogitShape,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        total = Gradients(ctx.needs_input_grad, hidden_ND, weight_VD, bias_V)
        logp_N = hidden_ND.new_empty(len(target_N), dtype=wide(hidden_ND))
        coefficient_N = coefficient_N.to(logp_N.dtype)
        memory_CV, needed = chunk_memory(hidden_ND, weight_VD, chunk), any(ctx.needs_input_grad[:3])
        for rows in chunks(len(target_N), chunk):
            logits_CV, target_C = raw_logits(hidden_ND[rows], weight_VD, bias_V, memory_CV), target_N[rows]
            if needed:
                logp_N[rows], grad_CV = softmax_gradient.logp_and_gradient_(
                    logits_CV, target_C, coefficient_N[rows], shape
                )
                total.add(rows, hidden_ND[rows], grad_CV)
            else:
                logp_N[rows] = softmax_gradient.forward(logits_CV, target_C, shape)[0]
        ctx.total = total
        ctx.mark_non_differentiable(logp_N)
        return (coefficient_N * logp_N).sum(), logp_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total, ctx.total = ctx.total, None  # scaled in place: a second copy of a head's gradient can be GBs
        if total is None:
            raise RuntimeError("linear_loss keeps its gradient for one backward pass; this is a second one")
        return *total.given_out(grads[0]), None, None, None, None


def cases() -> list[dict[str, Any]]:
    """Small inputs (fp64) for gradcheck and parity: with and without bias, scale, soft cap, several chunks."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    shapes = (LogitShape(), LogitShape(scale=0.25), LogitShape(softcap=2.0), LogitShape(0.5, 3.0))
    return [
        {
            "hidden_ND": normal(5, 4),
            "weight_VD": normal(11, 4),
            "bias_V": normal(11) if biased else None,
            "target_N": torch.tensor([0, 10, 3, 3, 7]),
            "shape": shape,
            "chunk": chunk,
        }
        for shape in shapes
        for biased in (False, True)
        for chunk in (2, 5)
    ]
