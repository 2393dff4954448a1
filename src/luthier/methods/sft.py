"""Supervised fine-tuning: make the answers in the data likely.

loss = Σ_n w_n · l_n / Σ_n w_n,   l_n = -log p(target_n | everything before it)

    label_smoothing e    l_n = -(1-e) · log p(target_n) - e · mean over the vocabulary of log p     arXiv:1512.00567
    z_loss c             l_n + c · logz_n²,   logz: the logits' log-normaliser                      arXiv:2204.02311

When: answers that are worth imitating. label_smoothing (0.1, say) keeps the model from being too sure; z_loss (1e-4
in the paper) keeps logits from growing in long runs, above all of pre-training. Either costs the head one more
product and some sweeps over the logits; with both at 0 nothing is paid. The loss holds them, on held-out rows too.

token_metrics adds two metrics under TRL's names: mean_token_accuracy, the share of targets that were the likeliest
token, and entropy in nats; they cost what label_smoothing does.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.kernels.token_statistics import Statistic
from luthier.methods.base import Method, Scores


@settings
class SFT(Method):
    """Negative log-likelihood per target token, averaged over all target tokens of a step."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each target that is spread evenly over the vocabulary."""

    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared log-normaliser of the logits."""

    token_metrics: bool = False
    """Also report how often the target was the likeliest token, and the entropy of the predictions."""

    metrics: ClassVar[tuple[str, ...]] = ("mean_token_accuracy", "entropy")

    @property
    def needs_distribution(self) -> tuple[Statistic, ...]:
        smooth: tuple[Statistic, ...] = ("mean_logp",) if self.label_smoothing else ()
        squared: tuple[Statistic, ...] = ("logz",) if self.z_loss else ()
        return (*smooth, *squared, "is_top", "entropy") if self.token_metrics else (*smooth, *squared)

    def count(self, batch: Batch) -> float:
        return float(batch.weight_N.double().sum())

    def coefficients(self, batch: Batch) -> Tensor | None:
        return None if self.needs_distribution else -batch.weight_N

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        w, more = batch.weight_N, scores.distribution
        loss_N = -scores.logp_N
        if self.label_smoothing:
            loss_N = (1 - self.label_smoothing) * loss_N - self.label_smoothing * more["mean_logp"]
        if self.z_loss:
            loss_N = loss_N + self.z_loss * more["logz"] ** 2
        nothing = w.new_zeros(())
        shown = {"mean_token_accuracy": "is_top", "entropy": "entropy"} if self.token_metrics else {}
        found = {metric: (w * more[name].detach()).sum() for metric, name in shown.items()}
        return (w * loss_N).sum(), dict.fromkeys(self.metrics, nothing) | found

    def report(self, means: dict[str, float]) -> dict[str, float]:
        return {n: v for n, v in means.items() if self.token_metrics or n not in self.metrics}
