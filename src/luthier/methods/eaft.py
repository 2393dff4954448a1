"""Entropy-adaptive fine-tuning: supervised, with each token weighed by how unsure the model is (arXiv:2601.02151).

loss = -Σ_n w_n · sg(g_n)^alpha · log p(target_n) / Σ_n w_n,   g_n = H_20 / log 20,   sg: without a gradient

H_20 is the entropy among the 20 likeliest tokens as if there were no others, so g is between 0 and 1. Where the model
is sure of another token than the data's, g is near 0 and the token hardly pulls: the paper blames such tokens for
what a model forgets in fine-tuning.

When: answers from another source than the model, to a model that should keep what it knew. Beside `dft`, which weighs
by the target's own probability, it goes on learning from unlikely targets that the model is unsure about. Watch gate,
the mean of g^alpha, which falls as the model gets surer; judge by held-out metrics, for the loss is no likelihood.

LLaMA-Factory and Axolotl divide by 3 instead of log 20 = 2.996, so their loss is smaller by 0.14 % at alpha 1.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.kernels.token_statistics import Statistic
from luthier.methods.base import Method, Scores


@settings
class EAFT(Method):
    """Negative log-likelihood per target token, weaker the surer the model is of any token."""

    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Power of the gate; 0: `sft`."""

    metrics: ClassVar[tuple[str, ...]] = ("gate",)

    @property
    def needs_distribution(self) -> tuple[Statistic, ...]:
        return ("top_entropy",)

    def count(self, batch: Batch) -> float:
        return float(batch.weight_N.double().sum())

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        gate_N = batch.weight_N * scores.distribution["top_entropy"].detach() ** self.alpha
        return -(gate_N * scores.logp_N).sum(), {"gate": gate_N.sum()}
