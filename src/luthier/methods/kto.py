"""Kahneman-Tversky optimisation: answers that are good or bad, each on its own, without pairs (arXiv:2402.01306).

loss = mean over answers of   desirable · (1 - σ(beta · (h - z)))      if the answer is good
                              undesirable · (1 - σ(beta · (z - h)))    if it is bad
h = log π(y|x) - log π_ref(y|x),   z = max(0, mean of h over prompts with answers to other prompts)

z is the reference point: how far the model has moved as a whole. It is a mean over the whole step on all ranks,
without a gradient, over each row's prompt with the answer of the next row that is short enough; it costs forward
passes of model and reference over these. `apo_zero_unpaired` (2408.06266) does without: 1 - σ(beta h) and σ(beta h).

When: thumbs up and down, or answers of which only one of a pair is known. If good and bad answers are not about
equally many, set the weights so that desirable · good / (undesirable · bad) lies between 1 and 1.33. Watch
rewards/margins (should grow) and kl (should stay small).

Defaults are the paper's. Deviation from TRL: there z is of one micro-batch, here of the step, so it does not depend
on memory settings. Before the first update the loss is (desirable · good + undesirable · bad) / (2 · answers).
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.data.loader import Dataset
from luthier.kernels.token_statistics import Statistic
from luthier.methods import _labels, _sequences, _tokens
from luthier.methods._mismatched import COLUMN, Mismatched, select
from luthier.methods.base import Method, Reads, Scores


@settings
class KTO(Method):
    """Answers labelled good or bad, each weighed against how far the model has moved as a whole."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How closely the model is held to the reference; larger is closer."""

    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """With or without the reference point."""

    desirable_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of good answers."""

    undesirable_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of bad answers."""

    token_metrics: bool = False
    """Also report the entropy of the predictions, and how often a token of a good answer was the likeliest one."""

    reads: ClassVar[Reads] = "label"
    metrics: ClassVar[tuple[str, ...]] = (*_labels.METRICS, "kl", *_tokens.METRICS)
    per: ClassVar[dict[str, str]] = _labels.PER | _tokens.PER

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def needs_distribution(self) -> tuple[Statistic, ...]:
        return _tokens.NEEDS if self.token_metrics else ()

    @property
    def looks_ahead(self) -> bool:
        return self.loss_type == "kto"

    def arrange(self, dataset: Dataset, most_tokens: int | None = None) -> Dataset:
        return Mismatched(dataset, most_tokens) if self.looks_ahead else dataset

    def learned(self, batch: Batch) -> Batch | None:
        return select(batch, batch.columns[COLUMN] == 0) if COLUMN in batch.columns else batch

    def previewed(self, batch: Batch) -> Batch | None:
        assert COLUMN in batch.columns, "rows went through `arrange`"
        return select(batch, batch.columns[COLUMN] == 1)

    def count(self, batch: Batch) -> float:
        good_Q, bad_Q = _labels.good_and_bad(self.learned(batch) or batch)
        return float(good_Q.sum() + bad_Q.sum())

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        ratio_Q, (good_Q, bad_Q) = _log_ratio(scores, batch), _labels.good_and_bad(batch)
        z = ratio_Q.new_zeros(()) if scores.step is None else scores.step.to(ratio_Q)
        good = _sequences.total((self.beta * (z - ratio_Q)).sigmoid(), good_Q)
        bad = _sequences.total((self.beta * (ratio_Q - z)).sigmoid(), bad_Q)
        found = _labels.metrics(self.beta * ratio_Q, _sequences.sums(scores.logp_N, batch), batch)
        found |= _tokens.metrics(scores, batch, good_Q)
        found["kl"] = _labels.shared(z, batch, ratio_Q)
        return self.desirable_weight * good + self.undesirable_weight * bad, found

    def preview(self, scores: Scores, batch: Batch) -> Tensor:
        return _log_ratio(scores, batch)[:, None]

    def statistics(self, lines_LK: Tensor, before: Tensor | None) -> Tensor:
        return lines_LK.mean().clamp(min=0) if lines_LK.numel() else lines_LK.new_zeros(())

    def report(self, means: dict[str, float]) -> dict[str, float]:
        return _labels.with_margin(super().report(means))


def _log_ratio(scores: Scores, batch: Batch) -> Tensor:
    """h of each sequence, [Q]."""
    assert scores.reference_N is not None
    return _sequences.sums(scores.logp_N - scores.reference_N, batch)
