"""What a distribution over the vocabulary says beside the target's log-probability, without a [T, V] tensor.

For each prediction, with s = shape(hidden · Wᵀ + b), logz = log Σ_v e^{s_v} and log p = s - logz:

    logz          the log-normaliser: z-loss (arXiv:2204.02311)          dlogz/ds  = p
    mean_logp     mean over the vocabulary of log p: label smoothing     d../ds    = 1/V - p
    entropy       H = -Σ p · log p                                       dH/ds     = -p · (log p + H)
    log_squares   log Σ p²: weights of WPO (arXiv:2406.11827)            d../ds    = 2 · (p² / Σ p² - p)
    top_entropy   entropy among the 20 likeliest tokens as if there were no others, divided by log 20: EAFT
                  (arXiv:2601.02151); no gradient
    is_top        1 where no token is likelier than the target; no gradient

`token_statistics` goes chunk by chunk. It saves hidden states and log-normalisers (and what else is [N]) and computes
a chunk's logits again in the backward pass. Only what is asked for is computed; where only the log-probabilities
have a gradient, the backward pass is that of `token_logprobs`.

Shape suffixes: N predictions, D hidden size, V vocabulary, C predictions of one chunk, B those of a block of it.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels import logprob, softmax_gradient
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

Statistic = Literal["logz", "mean_logp", "entropy", "log_squares", "top_entropy", "is_top"]
TOP = 20
"""Tokens that `top_entropy` looks at, as in the paper; all of them, where a vocabulary has fewer."""
_SMOOTH = ("logp", "logz", "mean_logp", "entropy", "log_squares")
# Logits that are widened at once. CPU: temporaries stay in the last-level cache; a GPU wants few launches.
_CPU_BLOCK, _GPU_BLOCK = 1 << 20, 1 << 26


def of_logits(shaped_NV: Tensor, target_N: Tensor, names: Sequence[Statistic]) -> dict[str, Tensor]:
    """The definition, from all logits at once (shaped, fp32 or wider): `logp` and the statistics, [N] each."""
    logp_NV = torch.log_softmax(shaped_NV, -1)
    found = {"logp": logp_NV.gather(1, target_N[:, None])[:, 0]}
    return found | {name: _of_block(name, shaped_NV, logp_NV, target_N) for name in names}


def reference(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    names: Sequence[Statistic],
    shape: LogitShape,
) -> dict[str, Tensor]:
    """The same from hidden states and weight."""
    return of_logits(shape(F.linear(hidden_ND, weight_VD, bias_V)), target_N, names)


def token_statistics(
    hidden_ND: Tensor,
    weight_VD: HeadWeight,
    bias_V: Tensor | None,
    target_N: Tensor,
    names: Sequence[Statistic],
    shape: LogitShape | None = None,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """`logp` of each target and the named statistics, [N] each in fp32, differentiable as the module says."""
    chunk = chunk or chunk_rows(hidden_ND, weight_VD.shape[0])
    wanted = ("logp", *dict.fromkeys(names))
    found = _TokenStatistics.apply(
        hidden_ND, weight_VD, bias_V, target_N, wanted, shape or LogitShape(), chunk
    )
    return dict(zip(wanted, found, strict=True))  # pyright: ignore[reportArgumentType]


def _of_block(name: str, shaped_BV: Tensor, logp_BV: Tensor, target_B: Tensor) -> Tensor:
    """One statistic of each row, [B]."""
    if name == "logz":
        return torch.logsumexp(shaped_BV, -1)
    if name == "mean_logp":
        return logp_BV.mean(-1)
    if name == "entropy":
        return -(logp_BV.exp() * logp_BV).sum(-1)
    if name == "log_squares":
        return torch.logsumexp(2 * logp_BV, -1)
    if name == "top_entropy":
        size = min(TOP, logp_BV.shape[1])
        top_BK = torch.log_softmax(logp_BV.detach().topk(size, -1).values, -1)
        return -(top_BK.exp() * top_BK).sum(-1) / (math.log(size) or 1.0)
    assert name == "is_top", f"no statistic is called {name}"
    best_B = logp_BV.detach().amax(-1)
    return (logp_BV.detach().gather(1, target_B[:, None])[:, 0] >= best_B).to(logp_BV.dtype)


def _blocks(logits_CV: Tensor) -> Iterator[slice]:
    most = _CPU_BLOCK if logits_CV.device.type == "cpu" else _GPU_BLOCK
    size = max(1, most // logits_CV.shape[1])
    return (slice(start, start + size) for start in range(0, len(logits_CV), size))


def _gradient_(
    logits_CV: Tensor, target_C: Tensor, saved: dict[str, Tensor], grads: dict[str, Tensor], shape: LogitShape
) -> Tensor:
    """The logits' memory, now holding the gradient of Σ grads · statistics with respect to them.

    `saved`: logz and, of what has a gradient, entropy and log_squares, [C]. `grads`: [C] for each statistic.
    """
    zero_C1 = torch.zeros_like(saved["logz"])[:, None]
    for rows in _blocks(logits_CV):
        shaped_BV = shape(logits_CV[rows])
        g = {name: (grads[name][rows, None] if name in grads else zero_C1[rows]) for name in _SMOOTH}
        logp_BV = shaped_BV - saved["logz"][rows, None]
        p_BV = logp_BV.exp()
        factor = g["logz"] - g["logp"] - g["mean_logp"] - 2 * g["log_squares"]
        if "entropy" in grads:
            factor = factor - g["entropy"] * (logp_BV + saved["entropy"][rows, None])
        if "log_squares" in grads:
            factor = factor + 2 * g["log_squares"] * (logp_BV - saved["log_squares"][rows, None]).exp()
        grad_BV = p_BV.mul_(factor).add_(g["mean_logp"] / logits_CV.shape[1])
        grad_BV.scatter_add_(1, target_C[rows, None], g["logp"].contiguous())
        logits_CV[rows] = shape.backward(grad_BV, shaped_BV)
    return logits_CV


class _TokenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: HeadWeight,
        bias_V: Tensor | None,
        target_N: Tensor,
        names: tuple[str, ...],
        shape: LogitShape,
        chunk: int,
    ) -> tuple[Tensor, ...]:
        logz_N = hidden_ND.new_empty(len(target_N), dtype=wide(hidden_ND))
        found = {name: torch.empty_like(logz_N) for name in names}
        memory_CV = chunk_memory(hidden_ND, weight_VD, chunk)
        rest = [name for name in names if name not in ("logp", "logz")]
        for rows in chunks(len(target_N), chunk):
            logits_CV = raw_logits(hidden_ND[rows], weight_VD, bias_V, memory_CV)
            found["logp"][rows], logz_N[rows] = softmax_gradient.forward(logits_CV, target_N[rows], shape)
            for block in _blocks(logits_CV) if rest else ():
                place = slice(rows.start + block.start, min(rows.start + block.stop, rows.stop))
                shaped_BV = shape(logits_CV[block])
                logp_BV = shaped_BV - logz_N[place, None]
                for name in rest:
                    found[name][place] = _of_block(name, shaped_BV, logp_BV, target_N[place])
        if "logz" in found:
            found["logz"].copy_(logz_N)
        kept = [found[name] for name in ("entropy", "log_squares") if name in found]
        remember(ctx, hidden_ND, weight_VD, bias_V, target_N, logz_N, *kept)
        ctx.names, ctx.shape, ctx.chunk = names, shape, chunk
        ctx.mark_non_differentiable(*(v for name, v in found.items() if name not in _SMOOTH))
        ctx.set_materialize_grads(False)
        return tuple(found[name] for name in names)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, target_N, logz_N, *kept = remembered(ctx)
        names = [name for name in ("entropy", "log_squares") if name in ctx.names]
        saved = {"logz": logz_N} | dict(zip(names, kept, strict=True))
        given = {n: g for n, g in zip(ctx.names, grads, strict=True) if g is not None and n in _SMOOTH}
        total = Gradients(ctx.needs_input_grad, hidden_ND, weight_VD, bias_V)
        memory_CV = chunk_memory(hidden_ND, weight_VD, ctx.chunk)
        for rows in chunks(len(target_N), ctx.chunk):
            logits_CV, target_C = raw_logits(hidden_ND[rows], weight_VD, bias_V, memory_CV), target_N[rows]
            parts = {name: grad[rows] for name, grad in given.items()}
            if parts.keys() == {"logp"}:
                softmax_gradient.gradient_(logits_CV, logz_N[rows], target_C, parts["logp"], ctx.shape)
            else:
                here = {name: value[rows] for name, value in saved.items()}
                _gradient_(logits_CV, target_C, here, parts, ctx.shape)
            total.add(rows, hidden_ND[rows], logits_CV)
        return *total.given_out(), None, None, None, None


def cases() -> list[dict[str, Any]]:
    """Small inputs (fp64) for gradcheck and parity: those of the head, a vocabulary above and below `TOP`."""
    generator = torch.Generator().manual_seed(0)
    larger = [
        {
            "hidden_ND": torch.randn(4, 3, generator=generator, dtype=torch.float64),
            "weight_VD": torch.randn(29, 3, generator=generator, dtype=torch.float64),
            "bias_V": None,
            "target_N": torch.tensor([28, 0, 5, 5]),
            "shape": LogitShape(),
            "chunk": 3,
        }
    ]
    return [*logprob.cases(), *larger]
