"""Process rewards: which steps of an answer are right.

loss = -y · log p - (1-y) · log(1 - p),   averaged over the steps of a training step (arXiv:2211.14275, 2305.20050)

p is the softmax of a linear head with two labels, read at the last token of each step; y is the step's label, held
within 0 and 1, so that -1 counts as wrong.

When: to find where reasoning goes wrong, or to rank answers by their steps. Watch accuracy on held-out steps: a step is
right if the likelier label is the one that it has (0.5 and more is right).

The model is saved as transformers' AutoModelForTokenClassification with the labels `wrong` and `right`; of what it
says of each token, only the last ones of steps mean something. Before the first update the loss is near log 2.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.data.draft import STEP_WEIGHT
from luthier.methods import _sequences
from luthier.methods.base import Method, Reads, Scores
from luthier.models.value_head import Head


@settings
class PRM(Method):
    """Answers in steps, each right or wrong, judged at the last token of each step."""

    reads: ClassVar[Reads] = "steps"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)

    def head(self, labels: Sequence[str] = ()) -> Head:
        return Head("steps", ("wrong", "right"), "single_label_classification")

    def count(self, batch: Batch) -> float:
        return float((batch.weight_N != 0).sum())

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert scores.values is not None
        mask_N = batch.weight_N != 0
        label_N = (batch.weight_N - STEP_WEIGHT).clamp(0, 1).to(scores.values)
        logp_N2 = torch.log_softmax(scores.values, -1)
        loss_N = -label_N * logp_N2[:, 1] - (1 - label_N) * logp_N2[:, 0]
        right_N = ((logp_N2[:, 1] >= logp_N2[:, 0]) == (label_N >= 0.5)).to(loss_N)
        return _sequences.total(loss_N, mask_N), {"accuracy": _sequences.total(right_N, mask_N)}
