"""Rankings by likelihood: a better answer should be likelier per token than a worse one; no reference (RRHF).

loss = mean over rankings of   Σ_{j worse than i} max(0, p_j - p_i) - nll_weight · p_best       (arXiv:2304.05302)
p = log π(y|x) / |y|

When: several answers a prompt with scores or ranks, and memory or time for a reference is short. The best answer is
imitated as well, so it may start from a base model. Answers of equal rank are not compared. Watch nll_loss and
rewards/accuracies, the share of ordered pairs that are right.

Deviation from the paper: its likelihood term is a sum over the tokens of the best answer, here it is their mean, so
that long answers do not drown the comparisons. Not in TRL; its names of metrics are kept: rewards are p.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods import _preference, _rankings, _sequences
from luthier.methods.base import Method, Reads, Scores


@settings
class RRHF(Method):
    """Rankings of several answers by their mean log-probability, and the best one imitated; no reference."""

    nll_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the negative log-likelihood of the best answers."""

    reads: ClassVar[Reads] = "ranking"
    metrics: ClassVar[tuple[str, ...]] = (*_preference.METRICS, "nll_loss")

    def count(self, batch: Batch) -> float:
        return _rankings.count(batch)

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        ranked = _rankings.rankings(batch)
        mean_Q = _sequences.sums(scores.logp_N, batch) / _sequences.lengths(batch)
        ahead_QQ = (mean_Q[None] - mean_Q[:, None]).relu()  # by how much the one of the column is likelier
        nll = -_sequences.total(mean_Q, ranked.best_Q)
        found = _rankings.metrics(ranked, mean_Q, mean_Q) | {"nll_loss": nll.detach()}
        return _sequences.total(ahead_QQ, ranked.worse_QQ) + self.nll_weight * nll, found
