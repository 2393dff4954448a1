"""A teacher's likeliest tokens: k of them for each prediction, and all others together as one more outcome.

    ids_n = the k largest of softmax(teacher's logits_n / temperature)
    others_n = Σ_v∉ids p_v

What is kept is 2 k + 1 numbers a prediction instead of V. `teacher.py` says what divergence that gives, and why it is
a lower bound of the full one. A chunk of predictions at a time, so all logits are never held.

Shape suffixes: N predictions, K tokens of the teacher, K1 = K + 1, V vocabulary, C predictions of one chunk.
"""

import torch
from torch import Tensor

from luthier.kernels import divergence
from luthier.kernels.head import chunk_rows, chunks
from luthier.kernels.teacher import TeacherHead, TeacherLogits, TopTokens

LARGEST_ID = 1 << 24
"""Ids below can be kept as fp32 numbers without loss."""


@torch.no_grad()
def top_tokens(
    teacher: TeacherHead | TeacherLogits,
    k: int,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    chunk: int | None = None,
) -> TopTokens:
    """The k likeliest tokens of every prediction, likeliest first; all of them where there are no more than k.

    Args:
        temperature: divides the logits, as in the divergence that is to follow.
        vocabulary: only the first so many tokens count, those that the student has too.
    """
    num_predictions, hidden = _size(teacher)
    size = min(vocabulary or teacher.vocabulary, teacher.vocabulary)
    k, memory = min(k, size), list[Tensor]()
    ids_NK = torch.empty(num_predictions, k, dtype=torch.int64, device=hidden.device)
    logp_NK1 = torch.empty(
        num_predictions, k + 1, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device
    )
    for rows in chunks(num_predictions, chunk or chunk_rows(hidden, teacher.vocabulary)):
        shaped_CV = teacher.shape(teacher.logits(rows, memory)[:, :size])
        logp_CV = divergence.log_softmax(shaped_CV, temperature)
        ids_NK[rows] = logp_CV.topk(k, dim=-1).indices
        logp_NK1[rows] = divergence.bucketed(logp_CV, ids_NK[rows])
    return TopTokens(ids_NK, logp_NK1)


def _size(teacher: TeacherHead | TeacherLogits) -> tuple[int, Tensor]:
    """How many predictions there are, and a tensor of the dtype and on the device of the logits."""
    like = teacher.hidden_ND if isinstance(teacher, TeacherHead) else teacher.logits_NV
    return len(like), like


def as_numbers(top: TopTokens) -> Tensor:
    """One line of fp32 numbers for each prediction, [N, K + K1]: the ids, then the log-probabilities."""
    assert not top.ids_NK.numel() or int(top.ids_NK.max()) < LARGEST_ID, "fp32 holds the ids"
    return torch.cat([top.ids_NK.float(), top.logp_NK1.float()], 1)


def from_numbers(number_NL: Tensor) -> TopTokens:
    """What `as_numbers` wrote."""
    k = number_NL.shape[1] // 2
    return TopTokens(number_NL[:, :k].long(), number_NL[:, k:])
