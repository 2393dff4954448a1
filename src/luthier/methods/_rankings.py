"""Answers to one prompt in an order, some of them perhaps equally good: what the losses on rankings have in common.

Shape suffixes: Q sequences. All shapes follow from those of the batch; comparisons are tables of all sequences with
all others, of which a micro-batch has few.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.methods import _preference, _sequences


@dataclass(frozen=True)
class Rankings:
    """How the sequences of a batch stand to each other."""

    best_Q: Tensor
    """Whether it is the first answer of its ranking."""
    last_Q: Tensor
    """Whether it is the last one."""
    same_QQ: Tensor
    """Whether two are of one ranking; padding is of none."""
    worse_QQ: Tensor
    """Whether, beside the answer of the line, that of the column is a worse one of the same ranking."""

    @property
    def wins(self) -> Tensor:
        """Share of the other answers of its ranking that are worse, equal ones counting half, [Q] in fp64; 0 to 1."""
        worse_Q, others_Q = self.worse_QQ.sum(1), self.same_QQ.sum(1) - 1
        equal_Q = others_Q - worse_Q - self.worse_QQ.sum(0)
        return (worse_Q.double() + 0.5 * equal_Q) / others_Q.clamp(min=1)

    def places(self, value_Q: Tensor) -> Tensor:
        """Place of each answer in its ranking's order by the value, [Q]: 1 is the largest, without a gradient.

        Values are alike to 1/1024, so that rounding decides nothing; like ones stand in the order of the data.
        """
        step_Q = (value_Q.detach() * 1024).round()
        index_Q = torch.arange(len(step_Q), device=step_Q.device)
        before_QQ = (step_Q[None] > step_Q[:, None]) | (
            (step_Q[None] == step_Q[:, None]) & (index_Q[None] < index_Q[:, None])
        )
        return 1 + (before_QQ & self.same_QQ).sum(1)

    def rest(self, score_Q: Tensor) -> Tensor:
        """log Σ e^score over each answer itself and those that are worse, [Q]."""
        counted_QQ = self.worse_QQ | torch.eye(len(score_Q), dtype=torch.bool, device=score_Q.device)
        return score_Q[None].expand_as(counted_QQ).masked_fill(~counted_QQ, -torch.inf).logsumexp(1)

    def mean_over_pairs(self, value_QQ: Tensor) -> Tensor:
        """For each answer its share of the mean over all ordered pairs of its ranking, [Q]; sums are these means."""
        pairs_Q = self.same_QQ.to(value_QQ.dtype) @ self.worse_QQ.sum(1).to(value_QQ.dtype)
        return torch.where(self.worse_QQ, value_QQ, 0).sum(1) / pairs_Q.clamp(min=1)


def rankings(batch: Batch) -> Rankings:
    """Which sequences belong together, and which are better than which."""
    row_Q, real_Q, level_Q = batch.columns["row"], _sequences.real(batch), _level(batch)
    # the best answer comes first, so a level that falls begins the same row anew
    begins_Q = torch.ones_like(real_Q)
    begins_Q[1:] = (row_Q[1:] != row_Q[:-1]) | (level_Q[1:] < level_Q[:-1])
    ends_Q = torch.ones_like(real_Q)
    ends_Q[:-1] = begins_Q[1:]
    group_Q = begins_Q.cumsum(0)
    same_QQ = (group_Q[:, None] == group_Q[None]) & real_Q[:, None] & real_Q[None]
    worse_QQ = same_QQ & (level_Q[:, None] < level_Q[None])
    return Rankings(begins_Q & real_Q, ends_Q & real_Q, same_QQ, worse_QQ)


def count(batch: Batch) -> float:
    """Rankings of the batch."""
    return float(rankings(batch).best_Q.sum())


def metrics(ranked: Rankings, reward_Q: Tensor, logp_Q: Tensor) -> dict[str, Tensor]:
    """Sums over the rankings under the names that pairs have: of the first, the last and of all ordered pairs."""
    reward_Q, logp_Q = reward_Q.detach(), logp_Q.detach()
    right_QQ = (reward_Q[:, None] > reward_Q[None]).to(reward_Q.dtype)
    best, worst = (_sequences.total(reward_Q, mask_Q) for mask_Q in (ranked.best_Q, ranked.last_Q))
    accuracies = ranked.mean_over_pairs(right_QQ).sum()
    logps = (_sequences.total(logp_Q, mask_Q) for mask_Q in (ranked.best_Q, ranked.last_Q))
    return dict(zip(_preference.METRICS, (best, worst, accuracies, best - worst, *logps), strict=True))


def _level(batch: Batch) -> Tensor:
    """Lower is better, [Q]: the rank of each answer, or where it has none its score turned round."""
    unknown_Q = torch.full_like(batch.columns["row"], torch.nan, dtype=torch.float32)
    rank_Q, score_Q = (batch.columns.get(name, unknown_Q).float() for name in ("rank", "score"))
    return torch.where(rank_Q.isnan(), -score_Q, rank_Q)
