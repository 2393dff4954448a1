"""A teacher with another tokenizer: it reads the same documents in its own tokens.

Where a learned token of the student begins at a place where a token of the teacher does, too, both say what comes after
the same text, and the teacher's distribution is given for it. Elsewhere it says nothing.

Shape suffixes: N predictions of the student, M of the teacher, K1 likeliest tokens of the teacher and all others.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.data.batch import Batch, Example, Segment, collate
from luthier.data.other_tokens import OtherTokens
from luthier.data.sharing import share_prefixes
from luthier.kernels.divergence import LOWEST
from luthier.kernels.teacher import SortedTokens
from luthier.kernels.top_tokens import top_tokens
from luthier.models.policy import Policy
from luthier.models.teacher import KnownTeacher, Teacher


class CrossTeacher:
    """Says how likely its likeliest tokens are, in order.

    Args:
        policy: the model, where the student is; it is frozen here.
        tokens: reads the student's documents with the teacher's tokenizer.
        k: how many tokens, at most as many as either vocabulary has.
        temperature: that of the distance.
    """

    def __init__(self, policy: Policy, tokens: OtherTokens, k: int, temperature: float):
        self.policy = policy.requires_grad_(False).eval()
        self.tokens, self.k, self.temperature = tokens, k, temperature

    @torch.no_grad()
    def __call__(self, batch: Batch) -> SortedTokens:
        """What it makes of every prediction of the student's batch, [N, K1]."""
        device = batch.tokens_T.device
        documents, row_N = self._read(batch)
        logp_NK1 = torch.full((len(row_N), self.k + 1), LOWEST, device=device)
        if documents:
            theirs = collate(documents)
            if self.policy.layout == "packed":
                theirs = share_prefixes(theirs)
            found = top_tokens(self.policy.as_teacher(theirs.to(device)), self.k, self.temperature)
            known_N = (row_N >= 0).to(device)
            logp_NK1[known_N] = found.logp_NK1.float()[row_N.to(device)[known_N]]
        return SortedTokens(logp_NK1)

    def share(self, batch: Batch) -> float:
        """How many of the predictions begin where a token of the teacher does; asks no model."""
        row_N = self._read(batch)[1]
        return float((row_N >= 0).double().mean()) if len(row_N) else 0.0

    def _read(self, batch: Batch) -> tuple[list[Example], Tensor]:
        """The documents in the teacher's tokens, and for each prediction of ours which of theirs it meets, or -1."""
        ids_T, starts = batch.tokens_T.cpu(), batch.starts_S1.tolist()
        source_N, sequence_N = batch.source_N.cpu(), batch.sequence_N.cpu()
        real_Q = batch.columns["row"].cpu() >= 0
        row_N = torch.full((len(source_N),), -1)
        documents: list[Example] = []
        before = 0
        for number, path in enumerate(batch.paths()):
            mine = torch.nonzero(sequence_N == number)[:, 0]
            if not len(mine) or not bool(real_Q[number]):
                continue
            index_P = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in path])
            reading = self.tokens(ids_T[index_P].tolist())
            target = (torch.searchsorted(index_P, source_N[mine]) + 1).numpy()
            places, rows = _met(reading.partner[target])
            row_N[mine] = torch.from_numpy(np.where(rows >= 0, rows + before, -1))
            if len(places):
                weights = np.zeros(len(reading.ids), np.float32)
                weights[places] = 1
                documents.append(Example((Segment(reading.ids, weights),)))
                before += len(places)
        return documents, row_N


AnyTeacher = Teacher | CrossTeacher | KnownTeacher
"""What a method may learn from."""


def _met(partner_M: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The teacher's tokens that are met, in order, and for each of ours its place among them, or -1.

    Nothing stands before a document's first token, so what it is cannot be predicted.
    """
    places = np.unique(partner_M[partner_M > 0])
    rows = np.searchsorted(places, partner_M).clip(max=max(0, len(places) - 1))
    return places, np.where(partner_M > 0, rows, -1)
