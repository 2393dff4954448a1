"""Reranker: how relevant a text is to a query, read together.

loss = -y · log σ(z) - (1-y) · log(1 - σ(z)),   averaged over the texts of a step (arXiv:1910.14424)

z is what a linear head says at the last token of "Query: …", newline, "Document: …"; y is the text's label, 0 to 1.
The texts of one row share the computation of their query. `loss_type: listwise` compares the texts of a row with each
other instead, -Σ p log softmax(z) with p = y / Σy, averaged over the rows that have a relevant text (ListNet, Cao et
al. 2007).

When: to order the first hits of a search, which an embedding model finds faster but less exactly. Rows need texts that
do not belong to the query, best those that a search has found wrongly. Watch accuracy on held-out rows: a text is
right if z > 0 says what its label (0.5 and more) says; with `listwise`, a row if its best text has its best label.

The model is saved as transformers' AutoModelForSequenceClassification with one label.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods import _sequences
from luthier.methods.base import Method, Reads, Scores
from luthier.models.value_head import Head


@settings
class Rerank(Method):
    """Queries with texts that belong to them or not, each scored together with its query."""

    loss_type: Literal["bce", "listwise"] = "bce"
    """Judge each text by itself, or the texts of a row against each other."""

    reads: ClassVar[Reads] = "relevance"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)

    def head(self, labels: Sequence[str] = ()) -> Head:
        return Head("score", ("relevance",))

    def count(self, batch: Batch) -> float:
        if self.loss_type == "bce":
            return float(_sequences.real(batch).sum())
        return float((_sums(batch.columns["relevance"] * _sequences.real(batch), _lists(batch)) > 0).sum())

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert scores.values is not None
        z_Q, real_Q = scores.values[:, 0], _sequences.real(batch)
        y_Q = batch.columns["relevance"].to(z_Q)
        if self.loss_type == "bce":
            loss_Q = F.binary_cross_entropy_with_logits(z_Q, y_Q, reduction="none")
            right_Q = ((z_Q > 0) == (y_Q >= 0.5)).to(z_Q)
            return _sequences.total(loss_Q, real_Q), {"accuracy": _sequences.total(right_Q, real_Q)}
        list_Q = _lists(batch)
        total_Q = _sums(y_Q * real_Q, list_Q)[list_Q]  # 0: a row without a relevant text, or padding
        share_Q = torch.where(total_Q > 0, y_Q / total_Q.clamp(min=1e-9), torch.zeros_like(y_Q))
        most_Q, best_Q = (_most(value.detach(), list_Q)[list_Q] for value in (z_Q, y_Q))
        log_sum_Q = most_Q + _sums((z_Q - most_Q).exp(), list_Q).log()[list_Q]
        found_Q = (z_Q == most_Q) & (y_Q == best_Q) & (total_Q > 0) & real_Q
        right = (_sums(found_Q.to(z_Q), list_Q) > 0).sum().to(z_Q)
        return _sequences.total(-share_Q * (z_Q - log_sum_Q), real_Q), {"accuracy": right}


def _lists(batch: Batch) -> Tensor:
    """The number of the row that each sequence belongs to, counted within the batch, [Q]."""
    row_Q = batch.columns["row"]
    first_Q = torch.ones_like(row_Q)
    first_Q[1:] = (row_Q[1:] != row_Q[:-1]).to(row_Q)
    return first_Q.cumsum(0) - 1


def _sums(value_Q: Tensor, list_Q: Tensor) -> Tensor:
    return value_Q.new_zeros(len(value_Q)).index_add(0, list_Q, value_Q)


def _most(value_Q: Tensor, list_Q: Tensor) -> Tensor:
    return value_Q.new_full((len(value_Q),), -torch.inf).scatter_reduce(0, list_Q, value_Q, "amax")
