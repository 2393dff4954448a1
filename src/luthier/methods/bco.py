"""Binary classifier optimisation: is this answer good or bad, as a classifier would learn it (arXiv:2404.04656).

loss = mean over answers of   -log σ(r - δ)   if the answer is good,   -log σ(δ - r)   if it is bad
r = beta · (log π(y|x) - log π_ref(y|x)),   δ = mean of r over all answers of all steps so far

δ is without a gradient. It counts the step under way, on all ranks, which costs a forward pass of model and reference
more; checkpoints keep it. On held-out rows δ is their own mean.

When: as KTO, thumbs up and down; less sensitive to how many of each there are. Watch rewards/margins and delta.

Defaults are TRL's. Not here: the weights for prompts that differ between good and bad answers (the paper's UDM),
which need an embedding model. Before the first update the loss is log 2.
"""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods import _labels, _sequences
from luthier.methods.base import Method, Reads, Scores


@settings
class BCO(Method):
    """Answers labelled good or bad, told apart by a classifier whose threshold is the mean reward so far."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How closely the model is held to the reference; larger is closer."""

    reads: ClassVar[Reads] = "label"
    metrics: ClassVar[tuple[str, ...]] = (*_labels.METRICS, "delta")
    per: ClassVar[dict[str, str]] = _labels.PER

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def looks_ahead(self) -> bool:
        return True

    def count(self, batch: Batch) -> float:
        return float(_sequences.real(batch).sum())

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert scores.step is not None, "the step was looked at beforehand"
        reward_Q, delta = self._rewards(scores, batch), scores.step[0] / scores.step[1].clamp(min=1)
        good_Q, bad_Q = _labels.good_and_bad(batch)
        gap_Q = reward_Q - delta.to(reward_Q)
        loss = _sequences.total(-F.logsigmoid(gap_Q), good_Q) + _sequences.total(-F.logsigmoid(-gap_Q), bad_Q)
        found = _labels.metrics(reward_Q, _sequences.sums(scores.logp_N, batch), batch)
        return loss, found | {"delta": _labels.shared(delta, batch, reward_Q)}

    def preview(self, scores: Scores, batch: Batch) -> Tensor:
        return self._rewards(scores, batch)[_sequences.real(batch)][:, None]

    def statistics(self, lines_LK: Tensor, before: Tensor | None) -> Tensor:
        now = torch.tensor([float(lines_LK.sum()), float(len(lines_LK))], dtype=torch.float64)
        return now if before is None else before + now

    def report(self, means: dict[str, float]) -> dict[str, float]:
        return _labels.with_margin(super().report(means))

    def _rewards(self, scores: Scores, batch: Batch) -> Tensor:
        assert scores.reference_N is not None
        return self.beta * _sequences.sums(scores.logp_N - scores.reference_N, batch)
