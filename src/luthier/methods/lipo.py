"""Listwise preference optimisation: pairs of a ranking count by how much swapping them would matter (LiPO-λ).

loss = mean over rankings of   Σ_{j worse than i} Δ_ij · -log σ(beta · (h_i - h_j))              (arXiv:2402.01878)
h = log π(y|x) - log π_ref(y|x),   Δ_ij = |2^ψ_i - 2^ψ_j| · |1 / log(1 + τ_i) - 1 / log(1 + τ_j)|

ψ is how good an answer is, from 0 (the worst) to 1; τ its place in the model's own order by h. So what is learned most
is to get the best answers to the top; Δ has no gradient (LambdaRank).

When: three answers or more a prompt with ranks or scores, of which the best ones matter most; else `dpo_ranking`.
Answers of equal rank are not compared. Watch rewards/accuracies, the share of ordered pairs that are right.

Deviation from the paper: its ψ is the share of wins over the other answers as a reward model predicts them; here it
is the share of the other answers that are worse by the data, equal ones counting half, whatever the scale of scores.
Answers that the model finds equally good stand in the order of the data, as all do before the first update: two answers
then cost (1/log 2 - 1/log 3) · log 2 = 0.369. Not in TRL; its names of metrics are kept: chosen is the best answer,
rejected the worst.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods import _preference, _rankings, _sequences
from luthier.methods.base import Method, Reads, Scores


@settings
class LiPO(Method):
    """Rankings of several answers against the model before training, the top of the list first."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How closely the model is held to the reference; larger is closer."""

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
        ratio_Q = logp_Q - _sequences.sums(scores.reference_N, batch)
        reward_Q = self.beta * ratio_Q
        gain_Q, discount_Q = 2 ** ranked.wins.to(reward_Q), 1 / ranked.places(ratio_Q).to(reward_Q).log1p()
        matters_QQ = (gain_Q[:, None] - gain_Q[None]).abs() * (discount_Q[:, None] - discount_Q[None]).abs()
        loss_QQ = matters_QQ * _preference.logistic(reward_Q[:, None] - reward_Q[None])
        return _sequences.total(loss_QQ, ranked.worse_QQ), _rankings.metrics(ranked, reward_Q, logp_Q)
