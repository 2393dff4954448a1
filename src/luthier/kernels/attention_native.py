"""Attention over a forest by the C++ kernels (cpp/attention_*.cpp): one call for the whole stream."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.kernels import native
from luthier.kernels.forest import AttentionRule, Forest

_TENSORS = ("query", "key", "value", "out", "grad", "query_grad", "key_grad", "value_grad")
_POINTERS = (*_TENSORS, "logsumexp", "sinks", "starts", "parents")
_SIZES = ("num_segments", "heads", "kv_heads", "key_size", "value_size", "window", "threads", "bf16")
_UNBOUNDED = 1 << 60  # a window that no position reaches


class _Call(ctypes.Structure):
    """`attention::Call` of cpp/attention_plan.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("strides", ctypes.c_int64 * (2 * len(_TENSORS))),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    )


def forward(
    library: native.Library,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: Forest,
    rule: AttentionRule,
    sinks: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
) -> None:
    """Writes `out` [T, H, D] and `logsumexp` [H, T]."""
    _call(library, "attention_forward", (query, key, value, out), logsumexp, forest, rule, sinks)


def backward(
    library: native.Library,
    tensors: Sequence[Tensor],
    logsumexp: Tensor,
    forest: Forest,
    rule: AttentionRule,
) -> None:
    """Writes the last three of query, key, value, out, grad, query_grad, key_grad, value_grad."""
    _call(library, "attention_backward", tensors, logsumexp, forest, rule, None)


def _call(
    library: native.Library,
    name: str,
    tensors: Sequence[Tensor],
    logsumexp: Tensor,
    forest: Forest,
    rule: AttentionRule,
    sinks: Tensor | None,
) -> None:
    query, key, value = tensors[:3]
    call = _Call()
    for number, (field, tensor) in enumerate(zip(_TENSORS, tensors, strict=False)):
        setattr(call, field, tensor.data_ptr())
        call.strides[2 * number], call.strides[2 * number + 1] = tensor.stride(0), tensor.stride(1)
    num_segments = len(forest.parents)
    starts = (ctypes.c_int64 * (num_segments + 1))(*forest.starts)
    parents = (ctypes.c_int64 * num_segments)(*forest.parents)
    call.starts, call.parents = ctypes.addressof(starts), ctypes.addressof(parents)
    sinks = None if sinks is None else sinks.float().contiguous()
    call.logsumexp, call.sinks = logsumexp.data_ptr(), native.pointer(sinks)
    call.num_segments, call.heads, call.kv_heads = num_segments, query.shape[1], key.shape[1]
    call.key_size, call.value_size = query.shape[2], value.shape[2]
    call.window = _UNBOUNDED if rule.window is None else rule.window
    call.threads, call.bf16 = torch.get_num_threads(), query.dtype == torch.bfloat16
    call.scale, call.softcap = rule.scale, rule.softcap or 0.0
    library.function(name, "p")(ctypes.addressof(call))
