"""Supervised fine-tuning: make the answers in the data likely.

loss = -Σ_n w_n · log p(target_n | everything before it) / Σ_n w_n
"""

from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods.base import Method, Scores


@settings
class SFT(Method):
    """Negative log-likelihood per target token, averaged over all target tokens of a step."""

    def count(self, batch: Batch) -> float:
        return float(batch.weight_N.double().sum())

    def coefficients(self, batch: Batch) -> Tensor:
        return -batch.weight_N

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return -(batch.weight_N * scores.logp_N).sum(), {}
