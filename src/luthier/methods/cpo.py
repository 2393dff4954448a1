"""Contrastive preference optimisation: DPO without a reference, and the chosen answer learned too (arXiv:2401.08417).

loss = mean over pairs of   -(1-e)·log σ(beta·(l_c - l_r)) - e·log σ(-beta·(l_c - l_r)) - nll_weight · l_c / |y_c|
l = log π(y|x);   hinge: max(0, 1 - beta·(l_c - l_r));   ipo: (l_c - l_r - 1/(2·beta))²

When: pairs whose chosen answers are good enough to be imitated, and memory or time for a reference is short. Watch
rewards/accuracies and nll_loss.

Defaults are TRL's (its cpo_alpha is nll_weight). For answers of unequal lengths see `simpo`. Deviation from TRL: the
likelihood term is of the answer alone, a mean over pairs of means over tokens.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods import _preference, _sequences
from luthier.methods.base import Method, Reads, Scores


@settings
class CPO(Method):
    """Preference pairs without a reference, beside the likelihood of the chosen answers."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Steepness of the comparison."""

    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """How the difference of log-probabilities is judged."""

    nll_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the negative log-likelihood of the chosen answers."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs whose answers are taken to be the wrong way round; only for sigmoid."""

    reads: ClassVar[Reads] = "pair"
    metrics: ClassVar[tuple[str, ...]] = (*_preference.METRICS, "nll_loss")

    def count(self, batch: Batch) -> float:
        return _preference.count_pairs(batch)

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logp_Q = _sequences.sums(scores.logp_N, batch)
        mask_P, _ = _sequences.pairs(_sequences.real(batch))
        (c, r), (nll_P, _) = _sequences.pairs(logp_Q), _sequences.pairs(-logp_Q / _sequences.lengths(batch))
        z = self.beta * (c - r)
        judged_P = {
            "sigmoid": lambda: _preference.logistic(z, self.label_smoothing),
            "hinge": lambda: (1 - z).relu(),
            "ipo": lambda: (c - r - 0.5 / self.beta) ** 2,
        }[self.loss_type]()
        found = _preference.metrics(self.beta * c, self.beta * r, logp_Q, mask_P)
        found["nll_loss"] = _sequences.total(nll_P.detach(), mask_P)
        return _sequences.total(judged_P + self.nll_weight * nll_P, mask_P), found
