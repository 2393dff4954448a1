"""Simple preference optimisation: the mean log-probability of a token is the reward; no reference (arXiv:2405.14734).

loss = mean over pairs of   -log σ(beta · (r_c - r_r) - gamma) + nll_weight · nll_c
r = m = log π(y|x) / |y|;   with alpha ≠ 0 (AlphaPO, arXiv:2501.03884)   r = (1 - e^(-alpha · m)) / alpha

nll_weight > 0 is CPO-SimPO. When: pairs of unequal lengths; lighter than DPO. Watch rewards/accuracies; a learning
rate that is too high ruins answers, so start with a tenth of DPO's.

beta 2 and gamma 1 are in the paper's range (2 to 2.5, gamma/beta about 0.5); TRL's defaults are 0.1 and 0.5.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods import _preference, _sequences
from luthier.methods.base import Method, Reads, Scores


@settings
class SimPO(Method):
    """Preference pairs judged by the mean log-probability of their tokens, with a margin; no reference."""

    beta: Annotated[float, Field(gt=0)] = 2.0
    """Scale of the rewards."""

    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Margin by which the chosen answer's scaled reward should be larger."""

    alpha: float = 0.0
    """Shape of the reward (AlphaPO); 0: the mean log-probability itself."""

    nll_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the negative log-likelihood of the chosen answers."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs whose answers are taken to be the wrong way round."""

    reads: ClassVar[Reads] = "pair"
    metrics: ClassVar[tuple[str, ...]] = (*_preference.METRICS, "nll_loss")

    def count(self, batch: Batch) -> float:
        return _preference.count_pairs(batch)

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        mean_Q = _sequences.sums(scores.logp_N, batch) / _sequences.lengths(batch)
        mask_P, _ = _sequences.pairs(_sequences.real(batch))
        reward_Q = -torch.expm1(-self.alpha * mean_Q) / self.alpha if self.alpha else mean_Q
        (c, r), (nll_P, _) = _sequences.pairs(reward_Q), _sequences.pairs(-mean_Q)
        judged_P = _preference.logistic(self.beta * (c - r) - self.gamma, self.label_smoothing)
        found = _preference.metrics(self.beta * c, self.beta * r, mean_Q, mask_P)
        found["nll_loss"] = _sequences.total(nll_P.detach(), mask_P)
        return _sequences.total(judged_P + self.nll_weight * nll_P, mask_P), found
