"""Log-probabilities of N predictions without a [T, V] tensor: the head, chunk by chunk.

    logp_n = log softmax(shape(hidden_n · Wᵀ + b))[target_n]

where `shape` is what the model does to its logits (a scale, a soft cap). Two tiers:

- `token_logprobs`: any loss; saves only hidden states and log-normalisers, and recomputes a chunk's logits
  in the backward pass.
- `linear_loss`: losses of the form Σ c_n · logp_n with c known beforehand (cross-entropy, REINFORCE); its
  gradient is formed in the forward pass, while the chunk's logits are at hand.

Shape suffixes: N predictions, D hidden size, V vocabulary, C predictions of one chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 256 * 1024 * 1024  # of fp32 logits at once: large enough for full-speed GEMMs on every device


@dataclass(frozen=True)
class LogitShape:
    """What happens to the raw logits before the softmax: scaled first, then soft-capped."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits_CV: Tensor) -> Tensor:
        """The shaped logits in fp32 (fp64 stays fp64)."""
        logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
        if self.scale != 1.0:
            logits_CV = logits_CV * self.scale
        if self.softcap is not None:
            logits_CV = torch.tanh(logits_CV / self.softcap) * self.softcap
        return logits_CV

    def backward(self, grad_CV: Tensor, shaped_CV: Tensor) -> Tensor:
        """Gradient with respect to the raw logits, from that with respect to the shaped ones. Works in place."""
        if self.softcap is not None:
            grad_CV = grad_CV.mul_(1 - (shaped_CV / self.softcap) ** 2)
        return grad_CV.mul_(self.scale) if self.scale != 1.0 else grad_CV


def reference(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor, shape: LogitShape
) -> Tensor:
    """The definition: all logits at once."""
    logp_NV = torch.log_softmax(shape(F.linear(hidden_ND, weight_VD, bias_V)), -1)
    return logp_NV.gather(1, target_N[:, None])[:, 0]


def token_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    shape: LogitShape | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Log-probability of each target, [N] in fp32, differentiable in hidden states, weight and bias."""
    chunk = chunk or _chunk_rows(weight_VD.shape[0])
    return _TokenLogprobs.apply(hidden_ND, weight_VD, bias_V, target_N, shape or LogitShape(), chunk)  # pyright: ignore[reportReturnType]


def linear_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    coefficient_N: Tensor,
    shape: LogitShape | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss Σ coefficient_n · logp_n, and logp [N] detached. Costs no recomputation in the backward pass."""
    chunk = chunk or _chunk_rows(weight_VD.shape[0])
    return _LinearLoss.apply(  # pyright: ignore[reportReturnType]
        hidden_ND, weight_VD, bias_V, target_N, coefficient_N, shape or LogitShape(), chunk
    )


def _chunk_rows(vocabulary: int) -> int:
    return max(128, CHUNK_BYTES // (4 * vocabulary))


def _chunks(num_rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def _shaped_logits(
    hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, shape: LogitShape
) -> tuple[Tensor, Tensor]:
    """Shaped logits and their log-normalisers, [C, V] and [C]."""
    shaped_CV = shape(F.linear(hidden_CD, weight_VD, bias_V))
    return shaped_CV, torch.logsumexp(shaped_CV, -1)


def _logit_gradient(
    shaped_CV: Tensor, logz_C: Tensor, target_C: Tensor, grad_C: Tensor, shape: LogitShape
) -> Tensor:
    """d(Σ grad_n · logp_n) / d raw logits = grad · (onehot(target) - softmax), through the shaping."""
    grad_CV = (shaped_CV - logz_C[:, None]).exp_().mul_(-grad_C[:, None])
    grad_CV.scatter_add_(1, target_C[:, None], grad_C[:, None].to(grad_CV.dtype))
    return shape.backward(grad_CV, shaped_CV)


class _Gradients:
    """Collects the gradients of hidden states, weight and bias over the chunks, only those that are asked for."""

    def __init__(self, needed: tuple[bool, ...], hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None):
        self.weight_VD, self.dtype = weight_VD, hidden_ND.dtype
        accumulate = torch.promote_types(weight_VD.dtype, torch.float32)
        self.hidden = torch.empty_like(hidden_ND) if needed[0] else None
        self.weight = torch.zeros_like(weight_VD, dtype=accumulate) if needed[1] else None
        self.bias = torch.zeros_like(bias_V, dtype=accumulate) if needed[2] and bias_V is not None else None

    def add(self, rows: slice, hidden_CD: Tensor, grad_CV: Tensor) -> None:
        if self.bias is not None:
            self.bias += grad_CV.sum(0)
        grad_CV = grad_CV.to(self.dtype)
        if self.hidden is not None:
            self.hidden[rows] = grad_CV @ self.weight_VD
        if self.weight is not None:
            self.weight += grad_CV.T @ hidden_CD

    def scaled(self, factor: Tensor | float) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The three gradients times `factor`, in the dtypes of what they belong to."""
        dtypes = (self.dtype, self.weight_VD.dtype, self.weight_VD.dtype)
        found = (self.hidden, self.weight, self.bias)
        hidden, weight, bias = (
            (g * factor).to(d) if g is not None else None for g, d in zip(found, dtypes, strict=True)
        )
        return hidden, weight, bias


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        shape: LogitShape,
        chunk: int,
    ) -> Tensor:
        logp, logz = [], []
        for rows in _chunks(len(target_N), chunk):
            shaped_CV, logz_C = _shaped_logits(hidden_ND[rows], weight_VD, bias_V, shape)
            logp.append(shaped_CV.gather(1, target_N[rows, None])[:, 0] - logz_C)
            logz.append(logz_C)
        empty = hidden_ND.new_zeros(0, dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, target_N, torch.cat(logz) if logz else empty)
        ctx.shape, ctx.chunk = shape, chunk
        return torch.cat(logp) if logp else empty.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, target_N, logz_N = ctx.saved_tensors
        total = _Gradients(ctx.needs_input_grad, hidden_ND, weight_VD, bias_V)
        for rows in _chunks(len(target_N), ctx.chunk):
            shaped_CV = ctx.shape(F.linear(hidden_ND[rows], weight_VD, bias_V))
            grad_CV = _logit_gradient(shaped_CV, logz_N[rows], target_N[rows], grads[0][rows], ctx.shape)
            total.add(rows, hidden_ND[rows], grad_CV)
        return *total.scaled(1.0), None, None, None


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        coefficient_N: Tensor,
        shape: LogitShape,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        total = _Gradients(ctx.needs_input_grad, hidden_ND, weight_VD, bias_V)
        accumulate = torch.promote_types(hidden_ND.dtype, torch.float32)
        logp_N = hidden_ND.new_empty(len(target_N), dtype=accumulate)
        for rows in _chunks(len(target_N), chunk):
            shaped_CV, logz_C = _shaped_logits(hidden_ND[rows], weight_VD, bias_V, shape)
            logp_N[rows] = shaped_CV.gather(1, target_N[rows, None])[:, 0] - logz_C
            if any(ctx.needs_input_grad[:3]):
                coefficient_C = coefficient_N[rows].to(accumulate)
                grad_CV = _logit_gradient(shaped_CV, logz_C, target_N[rows], coefficient_C, shape)
                total.add(rows, hidden_ND[rows], grad_CV)
        ctx.total = total
        ctx.mark_non_differentiable(logp_N)
        return (coefficient_N.to(accumulate) * logp_N).sum(), logp_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.total.scaled(grads[0]), None, None, None, None


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
