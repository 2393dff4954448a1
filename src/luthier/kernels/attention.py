"""Causal attention over a token forest: a token sees its own segment up to itself, and all of its ancestors.

`attend` and `attend_backward` work on plain tensors, strided as they lie in a layer's buffers; `forest_attention` is
the same for autograd, in transformers' layout. Who does the work:

- CPU, fp32 and bf16: the C++ kernels (cpp/attention_*.cpp), the whole stream in one call;
- CPU with matrix units for bf16 (AMX) and long documents: batched products of torch (attention_tiled.py);
- CUDA: torch's fused attention for documents laid end to end, in a few calls that are merged (attention_varlen.py);
- all else (fp64, no compiler, soft caps on a GPU): attention_tiled.py.

Shape suffixes: T tokens of the stream, H query heads, K key/value heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.kernels import attention_native, attention_tiled, attention_varlen, native, processor
from luthier.kernels.attention_dense import by_hand, dense_mask, with_dropout
from luthier.kernels.forest import AttentionRule, Forest

__all__ = [
    "AttentionRule",
    "Forest",
    "attend",
    "attend_backward",
    "cases",
    "dense_mask",
    "forest_attention",
    "reference",
]

LONG_DOCUMENT = 1024
"""From this mean length on, weighted by work, bf16 matrix units are worth the passes over scores that they need
between products. Estimated from their rate (10 times that of fp32 vectors), not measured."""


@torch.no_grad()
def attend(
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    forest: Forest,
    rule: AttentionRule,
    sinks_H: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What each token reads from the tokens that it sees, [T, H, D], and the log-sum-exp of its scores, [H, T].

    Args:
        query_THD: any token and head strides, last stride 1; so are keys, values and `out`.
        sinks_H: per-head logits that join the softmax and carry no value (arXiv:2309.17453).
        out: where to write the first result.
    """
    assert rule.dropout == 0.0, "dropout is for forest_attention"
    _check(query_THD, key_TKD, value_TKD, forest)
    forest.windows.add(rule.window)
    size = (*query_THD.shape[:2], value_TKD.shape[2])
    if query_THD.is_cuda and attention_varlen.supports(query_THD, key_TKD, value_TKD, rule) and size[0]:
        varlen = attention_varlen.TorchVarlen()
        made, logsumexp = attention_varlen.forward(
            query_THD, key_TKD, value_TKD, forest, rule, sinks_H, varlen
        )
        return (made if out is None else out.copy_(made)), logsumexp
    out = query_THD.new_empty(size) if out is None else out
    logsumexp = query_THD.new_empty((size[1], size[0]), dtype=_accumulate(query_THD.dtype))
    library = _library(query_THD, forest, key_TKD, value_TKD, out)
    if library is None:
        compute = _compute_dtype(query_THD)
        attention_tiled.forward(query_THD, key_TKD, value_TKD, forest, rule, sinks_H, out, logsumexp, compute)
    else:
        attention_native.forward(
            library, query_THD, key_TKD, value_TKD, forest, rule, sinks_H, out, logsumexp
        )
    return out, logsumexp


@torch.no_grad()
def attend_backward(
    grad_THD: Tensor,
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    out_THD: Tensor,
    logsumexp_HT: Tensor,
    forest: Forest,
    rule: AttentionRule,
    sinks_H: Tensor | None = None,
    *,
    query_grad: Tensor | None = None,
    key_grad: Tensor | None = None,
    value_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of query, key, value and sinks, given what `attend` returned and the gradient of its first result.

    The last three arguments say where to write the first three results; they must not overlap the inputs.
    """
    _check(query_THD, key_TKD, value_TKD, forest)
    inputs = (query_THD, key_TKD, value_TKD)
    wanted = (
        _new(query_THD) if query_grad is None else query_grad,
        _new(key_TKD) if key_grad is None else key_grad,
        _new(value_TKD) if value_grad is None else value_grad,
    )
    if query_THD.is_cuda and attention_varlen.supports(*inputs, rule) and len(query_THD):
        made = attention_varlen.backward(
            grad_THD, *inputs, out_THD, logsumexp_HT, forest, rule, attention_varlen.TorchVarlen()
        )
        for to, grad in zip(wanted, made, strict=True):
            to.copy_(grad)
    else:
        _backward(grad_THD, inputs, out_THD, logsumexp_HT, forest, rule, wanted)
    sinks_grad = None
    if sinks_H is not None:
        weight_HT = (sinks_H[:, None] - logsumexp_HT).exp()
        sinks_grad = -(weight_HT * _delta(grad_THD, out_THD)).sum(1).to(sinks_H.dtype)
    return (*wanted, sinks_grad)


def _backward(
    grad_THD: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    out_THD: Tensor,
    logsumexp_HT: Tensor,
    forest: Forest,
    rule: AttentionRule,
    wanted: tuple[Tensor, Tensor, Tensor],
) -> None:
    grad_THD = grad_THD if grad_THD.stride(-1) == 1 else grad_THD.contiguous()  # sums hand on expanded ones
    library = _library(inputs[0], forest, *inputs[1:], out_THD, grad_THD, *wanted)
    if library is None:
        delta_HT = _delta(grad_THD, out_THD)
        compute = _compute_dtype(inputs[0])
        attention_tiled.backward(grad_THD, *inputs, delta_HT, logsumexp_HT, forest, rule, *wanted, compute)
    else:
        tensors = (*inputs, out_THD, grad_THD, *wanted)
        attention_native.backward(library, tensors, logsumexp_HT, forest, rule)


def _new(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def _check(query: Tensor, key: Tensor, value: Tensor, forest: Forest) -> None:
    """What the kernels take on trust, since they read memory by these numbers."""
    num_tokens = forest.starts[-1]
    assert len(query) == len(key) == len(value) == num_tokens, (len(query), len(key), num_tokens)
    assert query.shape[2] == key.shape[2] and key.shape[1] == value.shape[1]
    assert query.shape[1] % key.shape[1] == 0
    assert len(forest.starts) == len(forest.parents) + 1


def _library(query: Tensor, forest: Forest, *others: Tensor) -> native.Library | None:
    """The C++ side, where it can do this and nothing else does it faster."""
    if _prefers_products(query, forest):
        return None
    return native.library_for(query, *others)


def _prefers_products(query: Tensor, forest: Forest) -> bool:
    return (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and processor.has_matrix_units()
        and _typical_length(forest) >= LONG_DOCUMENT
    )


def _typical_length(forest: Forest) -> float:
    """Mean length of segments, weighted by length: how long the segment of a token is."""
    lengths = [stop - start for start, stop in zip(forest.starts[:-1], forest.starts[1:], strict=True)]
    return sum(length * length for length in lengths) / max(1, sum(lengths))


def _compute_dtype(query: Tensor) -> torch.dtype:
    """In what dtype products are made: half precision only where the machine has units for it."""
    half = query.device.type != "cpu" or (query.dtype == torch.bfloat16 and processor.has_matrix_units())
    return query.dtype if half else _accumulate(query.dtype)


def _accumulate(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _delta(grad_THD: Tensor, out_THD: Tensor) -> Tensor:
    """Σ grad · out of each row, [H, T]: what the softmax's gradient takes off the gradient of every weight."""
    dtype = _accumulate(out_THD.dtype)
    return torch.einsum("thd,thd->ht", grad_THD.to(dtype), out_THD.to(dtype))


class _ForestAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_HTD: Tensor,
        key_KTD: Tensor,
        value_KTD: Tensor,
        sinks_H: Tensor | None,
        forest: Forest,
        rule: AttentionRule,
    ) -> Tensor:
        inputs = _by_token(query_HTD), _by_token(key_KTD), _by_token(value_KTD)
        out_THD, logsumexp_HT = attend(*inputs, forest, rule, sinks_H)
        ctx.save_for_backward(*inputs, out_THD, logsumexp_HT, sinks_H)
        ctx.forest, ctx.rule = forest, rule
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, out, logsumexp, sinks = ctx.saved_tensors
        made = attend_backward(grads[0], query, key, value, out, logsumexp, ctx.forest, ctx.rule, sinks)
        return (*(grad.transpose(0, 1) for grad in made[:3]), made[3], None, None)


def _by_token(tensor_HTD: Tensor) -> Tensor:
    """[T, H, D], with the last stride that the kernels need."""
    tensor_THD = tensor_HTD.transpose(0, 1)
    return tensor_THD if tensor_THD.stride(-1) == 1 else tensor_THD.contiguous()


def forest_attention(
    query_HTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    forest: Forest,
    rule: AttentionRule,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """The attention output for every token of the stream, [T, H, D], for autograd.

    `sinks_H` are per-head logits that join the softmax and carry no value (arXiv:2309.17453).
    """
    if rule.dropout > 0:
        forest.windows.add(rule.window)
        return with_dropout(query_HTD, key_KTD, value_KTD, forest, rule, sinks_H)
    out = _ForestAttention.apply(query_HTD, key_KTD, value_KTD, sinks_H, forest, rule)
    assert isinstance(out, Tensor)
    return out


def reference(
    query_HTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    forest: Forest,
    rule: AttentionRule,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """The same by one dense [T, T] mask: slow, and the truth that `forest_attention` is tested against."""
    mask_TT = dense_mask(forest, rule.window).to(query_HTD.device)
    return by_hand(query_HTD, key_KTD, value_KTD, mask_TT, rule, sinks_H).transpose(0, 1)


def cases() -> list[tuple[Forest, AttentionRule]]:
    """Small forests and rules that between them reach every branch."""
    forests = (
        Forest((0, 7), (-1,)),
        Forest((0, 5, 6, 14), (-1, -1, -1)),
        Forest((0, 6, 9, 13, 15, 20), (-1, 0, 0, 2, -1)),
        Forest((0, 130, 131, 230, 230, 340), (-1, 0, 1, -1, 0)),  # over several tiles; an empty segment
    )
    rules = (
        AttentionRule(0.35),
        AttentionRule(0.35, window=4),
        AttentionRule(0.35, window=101),
        AttentionRule(0.5, softcap=2.0),
        AttentionRule(0.5, window=3, softcap=2.0),
    )
    return [(forest, rule) for forest in forests for rule in rules]
