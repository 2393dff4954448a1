"""Reward model: a score that is higher for the chosen answer than for the rejected one (Bradley-Terry).

loss = -log σ(r_c - r_j - margin) + center · (r_c + r_j)²,   averaged over the pairs of a step

r is what a linear head says at the last token of prompt and answer; the margin is the column `margin` of a row, if it
has one (arXiv:2307.09288). Bradley-Terry in this form: 2203.02155. Only differences of rewards are learned, so their
level drifts; `center` > 0 holds it near 0 (2312.09244).

When: to rank or filter answers, or as the reward of reinforcement learning. Watch accuracy on held-out pairs (0.5 is
chance), and margin: if it grows while accuracy does not, the model overfits.

The model is saved as transformers' AutoModelForSequenceClassification with one label; with an adapter the head is
trained whole, in `modules_to_save`. Defaults are TRL's. Before the first update the rewards are small, and the loss
is near log 2.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods import _preference, _sequences
from luthier.methods.base import Method, Reads, Scores
from luthier.models.value_head import Head


@settings
class Reward(Method):
    """Pairs of answers, scored by a model with a head of one number."""

    center: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the square of the pair's summed rewards, which keeps them around 0; 0.01 is usual."""

    reads: ClassVar[Reads] = "pair"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "margin", "mean_reward")
    extremes: ClassVar[dict[str, Literal["min", "max"]]] = {"min_reward": "min", "max_reward": "max"}

    def head(self, labels: Sequence[str] = ()) -> Head:
        return Head("score", ("reward",))

    def count(self, batch: Batch) -> float:
        return _preference.count_pairs(batch)

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert scores.values is not None
        reward_c, reward_r = _sequences.pairs(scores.values[:, 0])
        mask_P = _sequences.pairs(_sequences.real(batch))[0]
        gap_P = reward_c - reward_r
        margin_P = gap_P.new_zeros(())
        if "margin" in batch.columns:
            margin_P = torch.nan_to_num(_sequences.pairs(batch.columns["margin"])[0]).to(gap_P)
        loss_P = -F.logsigmoid(gap_P - margin_P) + self.center * (reward_c + reward_r) ** 2
        values = ((gap_P > 0).to(gap_P), gap_P, (reward_c + reward_r) / 2)
        found = {n: _sequences.total(v.detach(), mask_P) for n, v in zip(self.metrics, values, strict=True)}
        rewards_P2 = torch.stack([reward_c, reward_r], 1).detach()
        for name, no_reward in (("min_reward", torch.inf), ("max_reward", -torch.inf)):
            values_P2 = rewards_P2.masked_fill(~mask_P[:, None], no_reward)
            found[name] = values_P2.amin() if name == "min_reward" else values_P2.amax()
        return _sequences.total(loss_P, mask_P), found
