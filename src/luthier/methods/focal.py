"""Supervised fine-tuning that spends itself on what is not yet learned: the focal loss (arXiv:1708.02002).

loss = -Σ_n w_n · (1 - p_n)^gamma · log p_n / Σ_n w_n,   p_n = p(target_n | everything before it)

When: most tokens of the answers are easy and a few matter (rare labels, long templates). gamma 0 is `sft`; the
paper's 2 all but ignores tokens above 0.9. The factor has its gradient, as in the paper.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods.base import Method, Scores


@settings
class Focal(Method):
    """Negative log-likelihood per target token, weaker the likelier the token already is."""

    gamma: Annotated[float, Field(ge=0)] = 2.0
    """How much weaker; 0: not at all."""

    def count(self, batch: Batch) -> float:
        return float(batch.weight_N.double().sum())

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        rest_N = -torch.expm1(scores.logp_N)  # not below 1e-7: a power under 1 has no finite slope at 0
        return -(batch.weight_N * rest_N.clamp(min=1e-7) ** self.gamma * scores.logp_N).sum(), {}
