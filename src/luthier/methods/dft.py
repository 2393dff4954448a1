"""Dynamic fine-tuning: supervised, with each token weighed by how likely it is (arXiv:2508.05629).

loss = -Σ_n w_n · sg(p_n) · log p_n / Σ_n w_n,   p_n = p(target_n | everything before it), sg: without a gradient

When: answers that are worth imitating, to a model that should keep more of what it knew than `sft` leaves it: tokens
that the model finds unlikely pull less. No settings. Watch the loss, which is at most 1/e for each token and falls
both when tokens become likely and when they become unlikely; so judge by held-out metrics.
"""

from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods.base import Method, Scores


@settings
class DFT(Method):
    """Negative log-likelihood per target token, weighed by the token's own probability."""

    def count(self, batch: Batch) -> float:
        return float(batch.weight_N.double().sum())

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weight_N = batch.weight_N * scores.logp_N.detach().exp()
        return -(weight_N * scores.logp_N).sum(), {}
