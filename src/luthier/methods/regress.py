"""Regression: a number for a text.

loss = (z - y)²,   or with `huber` d > 0: (z - y)² / 2 where |z - y| <= d, else d · (|z - y| - d/2)

averaged over the texts of a step; z is what a linear head says at the last token, y the row's label. `huber` (Huber
1964) keeps a few labels that are far off from pulling on everything.

When: grades, prices, shares of raters. Labels should lie within a few units of 0, since the head begins there: divide
them if they do not. Watch mae, the mean distance, on held-out rows.

The model is saved as transformers' AutoModelForSequenceClassification with one label and `problem_type: regression`.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods import _sequences
from luthier.methods.base import Method, Reads, Scores
from luthier.models.value_head import Head


@settings
class Regress(Method):
    """Texts with a number."""

    huber: Annotated[float, Field(gt=0)] | None = None
    """Distance from which on a label counts in proportion to its distance. Absent: always its square."""

    reads: ClassVar[Reads] = "number"
    metrics: ClassVar[tuple[str, ...]] = ("mae",)

    def head(self, labels: Sequence[str] = ()) -> Head:
        return Head("score", ("value",), "regression")

    def count(self, batch: Batch) -> float:
        return float(_sequences.real(batch).sum())

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert scores.values is not None
        real_Q, said_Q = _sequences.real(batch), scores.values[:, 0]
        label_Q = batch.columns["label"].to(said_Q)
        loss_Q = (said_Q - label_Q) ** 2
        if self.huber is not None:
            loss_Q = F.huber_loss(said_Q, label_Q, reduction="none", delta=self.huber)
        away_Q = (said_Q - label_Q).abs().detach()
        return _sequences.total(loss_Q, real_Q), {"mae": _sequences.total(away_Q, real_Q)}
