"""Classification: which of several classes a text belongs to.

loss = -log softmax(z)_label,   averaged over the texts of a step

z is what a linear head says at the last token, one number a class. The classes are the labels found in the data, in
order (numbers by size, names by alphabet), or those of `labels`; `label_smoothing` e > 0 takes (1-e) of the label and
e of all classes alike (arXiv:1512.00567).

When: routing, moderation, moods; with a few hundred labelled texts it is more exact and much cheaper than asking a
model that writes. Watch accuracy on held-out rows.

The model is saved as transformers' AutoModelForSequenceClassification with the names of the classes in `id2label`.
Before the first update the loss is near log(number of classes).
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
class Classify(Method):
    """Texts with the name of their class."""

    labels: list[str] | None = None
    """Names of the classes, in order. Absent: those found in the data."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that is spread over all classes."""

    reads: ClassVar[Reads] = "class"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.labels or ())

    def head(self, labels: Sequence[str] = ()) -> Head:
        return Head("score", self.classes or tuple(labels), "single_label_classification")

    def count(self, batch: Batch) -> float:
        return float(_sequences.real(batch).sum())

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert scores.values is not None
        real_Q, label_Q = _sequences.real(batch), batch.columns["label"].long()
        loss_Q = F.cross_entropy(
            scores.values, label_Q, reduction="none", label_smoothing=self.label_smoothing
        )
        right_Q = (scores.values.argmax(-1) == label_Q).to(loss_Q)
        return _sequences.total(loss_Q, real_Q), {"accuracy": _sequences.total(right_Q, real_Q)}
