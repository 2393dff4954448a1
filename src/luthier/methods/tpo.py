"""Triple preference optimisation: imitate the best answer, and prefer one of two others to the other; no reference.

loss = mean over triples of   -log σ(beta · (l_c - l_r)) - nll_weight · log π(y_g|x) / |y_g|      (arXiv:2405.16681)
l = log π(y|x)

    sigmoid   -(1-e) log σ(b(l_c - l_r)) - e log σ(-b(l_c - l_r))       TPO; e: label_smoothing
    tpo_l     the same of b(l_c/|y_c| - l_r/|y_r|) - gamma              TPO-L
    hinge     max(0, 1 - b(l_c - l_r))                                  2305.10425
    ipo       (l_c/|y_c| - l_r/|y_r| - 1/(2b))²                         2310.12036

When: three answers to each prompt, or rankings of more, straight from a base model: fine-tuning and preference in one
run. Of a ranking the best is imitated, and the second is preferred to the worst. Watch nll_loss and
rewards/accuracies.

Defaults are TRL's (its tpo_alpha is nll_weight, tpo_l_gamma is gamma). Deviation: the likelihood term is a mean over
triples of means over tokens.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods import _preference, _sequences
from luthier.methods.base import Method, Reads, Scores


@settings
class TPO(Method):
    """The best answer imitated and, of two others, the better one preferred; no reference."""

    beta: Annotated[float, Field(gt=0)] = 0.01
    """Steepness of the comparison."""

    loss_type: Literal["sigmoid", "tpo_l", "hinge", "ipo"] = "sigmoid"
    """How the two answers are compared."""

    nll_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the negative log-likelihood of the best answers."""

    gamma: Annotated[float, Field(ge=0)] = 0.5
    """Margin of tpo_l."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of triples whose two other answers are taken to be the wrong way round; for sigmoid and tpo_l."""

    reads: ClassVar[Reads] = "triple"
    metrics: ClassVar[tuple[str, ...]] = (*_preference.METRICS, "nll_loss")

    def count(self, batch: Batch) -> float:
        return float(_sequences.real(batch).sum()) / 3

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        sum_Q = _sequences.sums(scores.logp_N, batch)
        mean_Q = sum_Q / _sequences.lengths(batch)
        nll_P = -_sequences.groups(mean_Q, 3)[0]
        _, c, r = _sequences.groups(mean_Q if self.loss_type in ("tpo_l", "ipo") else sum_Q, 3)
        mask_P = _sequences.groups(_sequences.real(batch), 3)[0]
        z = self.beta * (c - r)
        judged_P = {
            "sigmoid": lambda: _preference.logistic(z, self.label_smoothing),
            "tpo_l": lambda: _preference.logistic(z - self.gamma, self.label_smoothing),
            "hinge": lambda: (1 - z).relu(),
            "ipo": lambda: (c - r - 0.5 / self.beta) ** 2,
        }[self.loss_type]()
        found = _preference.metrics(self.beta * c, self.beta * r, torch.stack([c, r], 1).flatten(), mask_P)
        found["nll_loss"] = _sequences.total(nll_P.detach(), mask_P)
        return _sequences.total(judged_P + self.nll_weight * nll_P, mask_P), found
