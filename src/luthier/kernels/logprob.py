"""Log-probabilities of N predictions without a [T, V] tensor: the head, chunk by chunk.

    logp_n = log softmax(shape(hidden_n · Wᵀ + b))[target_n]

where `shape` is what the model does to its logits (a scale, a soft cap). Two tiers:

- `token_logprobs`: any loss; saves only hidden states and log-normalisers, and recomputes a chunk's logits
  in the backward pass.
- `linear_loss`: losses of the form Σ c_n · logp_n with c known beforehand (cross-entropy, REINFORCE); its
  gradient is formed in the forward pass, while the chunk's logits are at hand.

Shape suffixes: N predictions, D hidden size, V vocabulary, C predictions of one chunk.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels import softmax_gradient
from luthier.kernels.softmax_gradient import LogitShape

# Logits at once. CPU, V = 49,152 and D = 576 in fp32 on two cores: 1,072 ms for 1,024 predictions in chunks of 24 MiB,
# 976 of 48, 882 of 96, 932 of 192. A GPU wants at least a thousand rows.
CPU_CHUNK_BYTES = 96 << 20
GPU_CHUNK_BYTES = 512 << 20


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
    chunk = chunk or _chunk_rows(hidden_ND, weight_VD.shape[0])
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
    chunk = chunk or _chunk_rows(hidden_ND, weight_VD.shape[0])
    return _LinearLoss.apply(  # pyright: ignore[reportReturnType]
        hidden_ND, weight_VD, bias_V, target_N, coefficient_N, shape or LogitShape(), chunk
    )


def _chunk_rows(hidden_ND: Tensor, vocabulary: int) -> int:
    """Depends on shapes alone, never on free memory: a resumed run must round as the first one did."""
    fewest, size = (128, CPU_CHUNK_BYTES) if hidden_ND.device.type == "cpu" else (1024, GPU_CHUNK_BYTES)
    return max(fewest, size // (hidden_ND.dtype.itemsize * vocabulary))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunk_size(num_rows: int, largest: int) -> int:
    """Rows of a chunk when all get about the same: a small last one would run its GEMMs slowly."""
    return math.ceil(num_rows / max(1, math.ceil(num_rows / largest)))


def _chunks(num_rows: int, largest: int) -> Iterator[slice]:
    size = _chunk_size(num_rows, largest)
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size or 1))


def _logits(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, memory_CV: Tensor) -> Tensor:
    """Raw logits [C, V] of a chunk, in the first rows of `memory_CV`."""
    out_CV = memory_CV[: len(hidden_CD)]
    if bias_V is None:
        return torch.mm(hidden_CD, weight_VD.T, out=out_CV)
    return torch.addmm(bias_V, hidden_CD, weight_VD.T, out=out_CV)


def _memory(hidden_ND: Tensor, weight_VD: Tensor, chunk: int) -> Tensor:
    """One chunk's logits, written over by each chunk in turn; their gradient takes the same place."""
    return hidden_ND.new_empty(_chunk_size(len(hidden_ND), chunk), len(weight_VD))


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
            self.bias += grad_CV.sum(0, dtype=self.bias.dtype)
        if self.hidden is not None:
            torch.mm(grad_CV, self.weight_VD, out=self.hidden[rows])
        if self.weight is None:
            return
        if self.weight.dtype == grad_CV.dtype:
            self.weight.addmm_(grad_CV.T, hidden_CD)
        else:
            self.weight += grad_CV.T @ hidden_CD

    def given_out(self, factor: Tensor | None = None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The three gradients times `factor` (in place), in the dtypes of what they belong to."""
        found = (self.hidden, self.weight, self.bias)
        hidden, weight, bias = (g if g is None or factor is None else g.mul_(factor) for g in found)
        dtype = self.weight_VD.dtype
        return hidden, None if weight is None else weight.to(dtype), None if bias is None else bias.to(dtype)


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
        logp_N = hidden_ND.new_empty(len(target_N), dtype=_wide(hidden_ND))
        logz_N, memory_CV = torch.empty_like(logp_N), _memory(hidden_ND, weight_VD, chunk)
        for rows in _chunks(len(target_N), chunk):
            logits_CV = _logits(hidden_ND[rows], weight_VD, bias_V, memory_CV)
            logp_N[rows], logz_N[rows] = softmax_gradient.forward(logits_CV, target_N[rows], shape)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, target_N, logz_N)
        ctx.shape, ctx.chunk = shape, chunk
        return logp_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, target_N, logz_N = ctx.saved_tensors
        total = _Gradients(ctx.needs_input_grad, hidden_ND, weight_VD, bias_V)
        memory_CV = _memory(hidden_ND, weight_VD, ctx.chunk)
        for rows in _chunks(len(target_N), ctx.chunk):
            logits_CV = _logits(hidden_ND[rows], weight_VD, bias_V, memory_CV)
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
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        coefficient_N: Tensor,
        shape: LogitShape,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        total = _Gradients(ctx.needs_input_grad, hidden_ND, weight_VD, bias_V)
        logp_N = hidden_ND.new_empty(len(target_N), dtype=_wide(hidden_ND))
        coefficient_N = coefficient_N.to(logp_N.dtype)
        memory_CV, needed = _memory(hidden_ND, weight_VD, chunk), any(ctx.needs_input_grad[:3])
        for rows in _chunks(len(target_N), chunk):
            logits_CV, target_C = _logits(hidden_ND[rows], weight_VD, bias_V, memory_CV), target_N[rows]
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
