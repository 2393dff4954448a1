"""Embeddings: vectors that are near for texts that belong together (InfoNCE, arXiv:1807.03748).

loss = -log( exp(cos(q, d⁺)/t) / Σ_d exp(cos(q, d)/t) ),   averaged over the queries of a step

d runs over the positive texts and the negative ones of all rows of the whole step, on all ranks: the other queries'
texts are the negatives, but for texts equal to d⁺ or to what belongs to an equal query. So that a step may be cut
into any micro-batches, the vectors of the step are computed beforehand without gradients, and each micro-batch then
learns against them (gradient caching, 2101.06983): gradients are those of one large batch, at the price of one more
forward pass. `dims` trains the first so many numbers of each vector, too, with the same weight (Matryoshka,
2205.13147).

When: search and clustering. Large steps (`train.tokens_per_step`) help, as they are the number of negatives; negatives
that a search has found wrongly help more. Watch accuracy on held-out rows: how often a query is nearest to its own
text among all of them.

The model is saved as transformers' AutoModel, with the small files by which sentence-transformers pools and
normalises. `t` is 0.05 as in 2104.08821.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.methods import _step_vectors
from luthier.methods.base import Method, Reads, Scores
from luthier.models.value_head import Head


@settings
class Embed(Method):
    """Queries with texts that belong to them, drawn together among all texts of the step."""

    temperature: Annotated[float, Field(gt=0)] = 0.05
    """t: smaller looks more at the nearest wrong texts."""

    dims: list[Annotated[int, Field(gt=0)]] | None = None
    """Lengths of the vector's beginnings that are trained besides the whole of it."""

    pooling: Literal["last", "mean"] = "last"
    """The vector of a text: the hidden state of its last token, or the mean of all."""

    reads: ClassVar[Reads] = "similar"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "similarity")

    @property
    def looks_ahead(self) -> bool:
        return True

    def head(self, labels: Sequence[str] = ()) -> Head:
        return Head("embedding", pooling=self.pooling, least_size=max(self.dims or [1]))

    def count(self, batch: Batch) -> float:
        return float(_step_vectors.queries(batch).sum())

    def preview(self, scores: Scores, batch: Batch) -> Tensor:
        assert scores.values is not None
        return _step_vectors.lines(scores.values, batch)

    def statistics(self, lines_LK: Tensor, before: Tensor | None) -> Tensor:
        return _step_vectors.table(lines_LK)

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert scores.values is not None and scores.step is not None
        step = _step_vectors.StepVectors(scores.step, scores.values, batch)
        whole = step.vectors_LD.shape[1]
        cos_MC = step.cosines(whole)
        losses_M = F.cross_entropy(cos_MC / self.temperature, step.target_M, reduction="none")
        for size in dict.fromkeys(size for size in self.dims or () if size != whole):
            shorter_MC = step.cosines(size) / self.temperature
            losses_M = losses_M + F.cross_entropy(shorter_MC, step.target_M, reduction="none")
        mine_M, all_of_it = step.mine_M, losses_M.sum()
        right_M = (cos_MC.argmax(-1) == step.target_M).to(cos_MC)
        near_M = cos_MC.detach().gather(1, step.target_M[:, None])[:, 0]
        found = {"accuracy": right_M[mine_M].sum(), "similarity": near_M[mine_M].sum()}
        # the value is that of the own queries; the gradient is that of the step's loss in the own vectors
        return losses_M.detach()[mine_M].sum() + (all_of_it - all_of_it.detach()), found
