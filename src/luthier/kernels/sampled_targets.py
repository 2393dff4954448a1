"""Targets drawn from the model's own distribution, chunk by chunk, without a [N, V] tensor.

    target_n ~ softmax(shape(hidden_n · Wᵀ + b)),   drawn as argmax_v (logit_nv - log e_nv) with e ~ Exp(1)

Shape suffixes: N predictions, D hidden size, V vocabulary, C predictions of one chunk.
"""

import torch
from torch import Tensor

from luthier.kernels.head import HeadWeight, chunk_memory, chunk_rows, chunks, raw_logits
from luthier.kernels.softmax_gradient import LogitShape


@torch.no_grad()
def sampled_targets(
    hidden_ND: Tensor,
    weight_VD: HeadWeight,
    bias_V: Tensor | None,
    shape: LogitShape,
    generator: torch.Generator,
    chunk: int | None = None,
) -> Tensor:
    """One token for each prediction, [N]. The generator is one of the device."""
    chunk = chunk or chunk_rows(hidden_ND, len(weight_VD))
    target_N = torch.empty(len(hidden_ND), dtype=torch.long, device=hidden_ND.device)
    memory_CV = chunk_memory(hidden_ND, weight_VD, chunk)
    for rows in chunks(len(target_N), chunk):
        logits_CV = shape(raw_logits(hidden_ND[rows], weight_VD, bias_V, memory_CV))
        target_N[rows] = gumbel_argmax(logits_CV, generator)
    return target_N


def gumbel_argmax(logits_CV: Tensor, generator: torch.Generator) -> Tensor:
    """A draw from the softmax of each row, [C]."""
    waiting_CV = torch.empty_like(logits_CV).exponential_(generator=generator)
    return (logits_CV - waiting_CV.log_()).argmax(-1)
