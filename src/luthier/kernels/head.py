"""What all ops on the output head share: chunks of predictions, their raw logits, and gradients added up over them.

An op walks over the predictions chunk by chunk, forms one chunk's logits [C, V] in memory that the next chunk writes
over, and hands the gradient of these logits back in the same place. The weight is a tensor, or one that is stored in
few bits and frozen (`DecodedHead`), of which some rows at a time are decoded.

Shape suffixes: N predictions, D hidden size, V vocabulary, C predictions of one chunk.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from luthier.kernels.decoded_head import DecodedHead

HeadWeight = Tensor | DecodedHead
"""An output embedding [V, D]."""

# Logits at once. CPU, V = 49,152 and D = 576 in fp32 on two cores: 1,072 ms for 1,024 predictions in chunks of 24 MiB,
# 976 of 48, 882 of 96, 932 of 192. A GPU wants at least a thousand rows, which
# 256 MiB are at a vocabulary of 128k in 16 bits (not measured).
CPU_CHUNK_BYTES = 96 << 20
GPU_CHUNK_BYTES = 256 << 20


def chunk_rows(hidden_ND: Tensor, vocabulary: int) -> int:
    """The most predictions of a chunk. It depends on shapes alone: a resumed run must round as the first one did."""
    return most_rows(hidden_ND.device, hidden_ND.dtype, vocabulary)


def most_rows(device: torch.device, dtype: torch.dtype, vocabulary: int) -> int:
    """The same of logits in `dtype` on `device`: as many as fit the size of a chunk, but not so few as to be slow."""
    fewest, size = (128, CPU_CHUNK_BYTES) if device.type == "cpu" else (1024, GPU_CHUNK_BYTES)
    return max(fewest, size // (dtype.itemsize * vocabulary))


def wide(tensor: Tensor) -> torch.dtype:
    """What log-probabilities are given out in: fp32, or fp64 for fp64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def chunk_size(num_rows: int, largest: int) -> int:
    """Rows of a chunk when all get about the same: a small last one would run its GEMMs slowly."""
    return math.ceil(num_rows / max(1, math.ceil(num_rows / largest)))


def chunks(num_rows: int, largest: int) -> Iterator[slice]:
    """The rows of each chunk in turn."""
    size = chunk_size(num_rows, largest)
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size or 1))


def raw_logits(hidden_CD: Tensor, weight_VD: HeadWeight, bias_V: Tensor | None, memory_CV: Tensor) -> Tensor:
    """Raw logits [C, V] of a chunk, in the first rows of `memory_CV`."""
    out_CV = memory_CV[: len(hidden_CD)]
    if isinstance(weight_VD, DecodedHead):
        return weight_VD.logits_(hidden_CD, bias_V, out_CV)
    if bias_V is None:
        return torch.mm(hidden_CD, weight_VD.T, out=out_CV)
    return torch.addmm(bias_V, hidden_CD, weight_VD.T, out=out_CV)


def chunk_memory(hidden_ND: Tensor, weight_VD: HeadWeight, chunk: int) -> Tensor:
    """One chunk's logits, written over by each chunk in turn; their gradient takes the same place."""
    return hidden_ND.new_empty(chunk_size(len(hidden_ND), chunk), len(weight_VD))


def remember(ctx: Any, hidden_ND: Tensor, weight_VD: HeadWeight, *others: Tensor | None) -> None:
    """Keeps what the backward pass needs."""
    stored = isinstance(weight_VD, DecodedHead)
    ctx.stored = weight_VD if stored else None
    ctx.save_for_backward(hidden_ND, None if stored else weight_VD, *others)


def remembered(ctx: Any) -> tuple[Any, ...]:
    """What `remember` was given."""
    hidden_ND, weight_VD, *others = ctx.saved_tensors
    return hidden_ND, weight_VD if ctx.stored is None else ctx.stored, *others


class Gradients:
    """Collects the gradients of hidden states, weight and bias over the chunks, only those that are asked for."""

    def __init__(
        self, needed: tuple[bool, ...], hidden_ND: Tensor, weight_VD: HeadWeight, bias_V: Tensor | None
    ):
        self.weight_VD, self.dtype = weight_VD, hidden_ND.dtype
        accumulate = torch.promote_types(weight_VD.dtype, torch.float32)
        self.hidden = torch.empty_like(hidden_ND) if needed[0] else None
        self.weight = None
        if needed[1]:
            assert isinstance(weight_VD, Tensor), "what is stored is frozen"
            self.weight = torch.zeros_like(weight_VD, dtype=accumulate)
        self.bias = torch.zeros_like(bias_V, dtype=accumulate) if needed[2] and bias_V is not None else None

    def add(self, rows: slice, hidden_CD: Tensor, grad_CV: Tensor) -> None:
        """Takes in the gradient of the raw logits of one chunk."""
        if self.bias is not None:
            self.bias += grad_CV.sum(0, dtype=self.bias.dtype)
        if self.hidden is not None:
            if isinstance(self.weight_VD, DecodedHead):
                self.weight_VD.input_gradient_(grad_CV, self.hidden[rows])
            else:
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
