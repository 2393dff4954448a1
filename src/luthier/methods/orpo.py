"""Odds ratio preference optimisation: learn the chosen answer, and push the rejected one down (arXiv:2403.07691).

loss = mean over pairs of   -m_c - beta · log σ(log odds(m_c) - log odds(m_r)),   log odds(m) = m - log(1 - e^m)
m = log π(y|x) / |y|

When: pairs, straight from a base model: supervised fine-tuning and preference in one run, without a reference and so
without its cost. Watch nll_loss (falls) and log_odds_chosen (rises).

beta is the paper's lambda, 0.1 as in TRL. Deviations from TRL: the likelihood term is of the answer alone, not of the
prompt too, and a mean over pairs of means over tokens, as in the paper.
"""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods import _preference, _sequences
from luthier.methods.base import Method, Reads, Scores


@settings
class ORPO(Method):
    """Fine-tuning on the chosen answers with an odds ratio against the rejected ones; no reference."""

    beta: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the odds ratio."""

    reads: ClassVar[Reads] = "pair"
    metrics: ClassVar[tuple[str, ...]] = (
        *_preference.METRICS, "nll_loss", "log_odds_ratio", "log_odds_chosen",
    )  # fmt: skip

    def count(self, batch: Batch) -> float:
        return _preference.count_pairs(batch)

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        mean_Q = _sequences.sums(scores.logp_N, batch) / _sequences.lengths(batch)
        mask_P, _ = _sequences.pairs(_sequences.real(batch))
        c, r = _sequences.pairs(mean_Q)
        odds_P = (c - r) - (_log_rest(c) - _log_rest(r))
        ratio_P = F.logsigmoid(odds_P)
        found = _preference.metrics(self.beta * c, self.beta * r, mean_Q, mask_P)
        extra = {"nll_loss": -c, "log_odds_ratio": ratio_P, "log_odds_chosen": odds_P}
        found |= {name: _sequences.total(value.detach(), mask_P) for name, value in extra.items()}
        return _sequences.total(-c - self.beta * ratio_P, mask_P), found


def _log_rest(m: Tensor) -> Tensor:
    """log(1 - e^m) for m < 0; an m that rounds to 0 counts as a little below."""
    return torch.log(-torch.expm1(m.clamp(max=-1e-6)))
