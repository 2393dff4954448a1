"""The vectors of all texts of a step, with those of one micro-batch alive: what losses over the step compare.

A line is (row, place in the row, name of the text, vector); the query of a row has place 0, its positive text 1, its
negatives follow. Equal texts have equal names: 52 bits of a hash of their tokens.

Shape suffixes: L texts of the step, M its queries, C its other texts, Q sequences of the batch, D numbers of a vector.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.data.batch import Batch
from luthier.data.encode_scored import QUERY
from luthier.methods import _sequences

_MOST = 4096
"""More texts than a row has."""
_ODD, _OTHER = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9


def queries(batch: Batch) -> Tensor:
    """Which sequences are queries of rows, [Q]."""
    return _sequences.real(batch) & (batch.columns["relevance"] == QUERY)


def places(batch: Batch) -> Tensor:
    """How many sequences of its row stand before each sequence, [Q]."""
    index_Q = torch.arange(batch.num_sequences, device=batch.columns["row"].device)
    first_Q = torch.where(batch.columns["relevance"] == QUERY, index_Q, torch.zeros_like(index_Q))
    return index_Q - first_Q.cummax(0).values


def lines(vectors_QD: Tensor, batch: Batch) -> Tensor:
    """The lines of a batch, those of padding left out."""
    keys_Q3 = torch.stack([batch.columns["row"].double(), places(batch).double(), names(batch).double()], 1)
    return torch.cat([keys_Q3, vectors_QD.double()], 1)[_sequences.real(batch)]


def names(batch: Batch) -> Tensor:
    """A whole number for each sequence, the same for the same tokens, [Q]; fp64 holds it exactly."""
    mixed_T = batch.tokens_T * _ODD + (batch.positions_T + 1) * _OTHER
    for shift, factor in ((29, _ODD), (31, _OTHER)):
        mixed_T = (mixed_T ^ (mixed_T >> shift)) * factor
    size_S = batch.starts_S1.diff()
    segment_T = torch.arange(len(size_S)).repeat_interleave(size_S).to(mixed_T.device)
    sum_S = mixed_T.new_zeros(len(size_S)).index_add(0, segment_T, mixed_T)
    pairs = [(number, segment) for number, path in enumerate(batch.paths()) for segment in path]
    sequence_M, segment_M = torch.tensor(pairs).T.to(mixed_T.device)
    name_Q = mixed_T.new_zeros(batch.num_sequences).index_add(0, sequence_M, sum_S[segment_M])
    return name_Q & ((1 << 52) - 1)


def table(lines_LK: Tensor) -> Tensor:
    """All lines of a step in the order of their rows and places, whatever order they came in."""
    if lines_LK.numel() == 0:
        return lines_LK
    return lines_LK[torch.argsort(lines_LK[:, 0] * _MOST + lines_LK[:, 1], stable=True)]


class StepVectors:
    """The step's vectors, of which those of this batch carry a gradient."""

    def __init__(self, table_LK: Tensor, vectors_QD: Tensor, batch: Batch):
        real_Q = _sequences.real(batch)
        keys_L = table_LK[:, 0] * _MOST + table_LK[:, 1]
        key_Q = batch.columns["row"].to(keys_L) * _MOST + places(batch).to(keys_L)
        own = torch.searchsorted(keys_L, key_Q[real_Q])
        place_L = table_LK[:, 1].long()
        self.vectors_LD = table_LK[:, 3:].to(vectors_QD).index_copy(0, own, vectors_QD[real_Q])
        """All vectors, [L, D]."""
        self.query_M = (place_L == 0).nonzero()[:, 0]
        self.text_C = (place_L > 0).nonzero()[:, 0]
        self.target_M = ((place_L > 0).cumsum(0) - 1)[self.query_M + 1]
        """Which of the other texts is the positive one of each query, [M]."""
        name_M, name_C = table_LK[self.query_M, 2], table_LK[self.text_C, 2]
        alike_MC = name_C[None] == name_C[self.target_M][:, None]
        question_M = name_M.unique(return_inverse=True)[1]
        answers_MC = torch.zeros_like(alike_MC, dtype=torch.int32).index_add(0, question_M, alike_MC.int())
        others_MC = torch.arange(len(name_C), device=question_M.device) != self.target_M[:, None]
        self.passed_MC = (answers_MC[question_M] > 0) & others_MC
        """Which texts are no negatives of a query: those equal to its own, or to what belongs to an equal query."""
        is_own_L = torch.zeros(len(keys_L), dtype=torch.bool, device=keys_L.device)
        is_own_L[own] = True
        self.mine_M = is_own_L[self.query_M]
        """Which queries are those of this batch, [M]."""

    def cosines(self, size: int) -> Tensor:
        """Cosine of every query with every other text, [M, C], of the first `size` numbers of their vectors.

        -inf where the text is not to be compared with the query.
        """
        unit_LD = F.normalize(self.vectors_LD[:, :size], dim=-1)
        return (unit_LD[self.query_M] @ unit_LD[self.text_C].T).masked_fill(self.passed_MC, -torch.inf)
