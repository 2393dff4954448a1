"""DPO on rankings of two answers or more: a model of choosing the best, then the best of the rest (Plackett-Luce).

loss = mean over rankings of   Σ_k [ log Σ_{j = k or worse than k} e^(beta · h_j) - beta · h_k ]
h = log π(y|x) - log π_ref(y|x)

    plackett_luce   as above                                    arXiv:2305.18290, appendix A.3
    pairwise        mean over pairs of -log σ(beta (h_i - h_j)), i better than j

When: several answers a prompt with scores or ranks; all of them are used, where `dpo` takes the best and the worst.
Answers of equal rank are not compared. Watch rewards/accuracies, the share of ordered pairs that are right, and
rewards/margins, of the best and the worst.

With two answers both are DPO. Before the first update a ranking of K answers without ties costs log(K!), or log 2
with pairwise. Not in TRL; its names of metrics are kept: chosen is the best answer, rejected the worst.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods import _preference, _rankings, _sequences
from luthier.methods.base import Method, Reads, Scores


@settings
class RankingDPO(Method):
    """Rankings of several answers against the model before training: DPO for more than two."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How closely the model is held to the reference; larger is closer."""

    loss_type: Literal["plackett_luce", "pairwise"] = "plackett_luce"
    """The whole order at once, or each pair of answers on its own."""

    reads: ClassVar[Reads] = "ranking"
    metrics: ClassVar[tuple[str, ...]] = (*_preference.METRICS,)

    @property
    def needs_reference(self) -> bool:
        return True

    def count(self, batch: Batch) -> float:
        return _rankings.count(batch)

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert scores.reference_N is not None
        ranked, logp_Q = _rankings.rankings(batch), _sequences.sums(scores.logp_N, batch)
        reward_Q = self.beta * (logp_Q - _sequences.sums(scores.reference_N, batch))
        if self.loss_type == "plackett_luce":
            loss_Q = ranked.rest(reward_Q) - reward_Q
        else:
            loss_Q = ranked.mean_over_pairs(_preference.logistic(reward_Q[:, None] - reward_Q[None]))
        return _sequences.total(loss_Q, _sequences.real(batch)), _rankings.metrics(ranked, reward_Q, logp_Q)
