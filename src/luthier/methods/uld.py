"""Distillation across tokenizers: learn how sure a teacher is, token by token, though its tokens are others.

loss = Σ_n w_n · (weight · a_n · Σ_i |p_(i) - q_(i)| - log q(target_n | everything before it)) / Σ_n w_n

p_(i) is the teacher's i-th largest probability, q_(i) the student's: the two are sorted, so no token of one must be a
token of the other (universal logit distillation, arXiv:2402.12030). a_n is 1 where a token of the teacher begins at the
same place of the text as the student's, 0 elsewhere: there both say what comes next after the same text. The
`top_k` largest are compared one by one and all others together, which is never more than the whole sum.

The teacher is named by `teacher: NAME` beside `method`. It reads the student's rows, template included, with its own
tokenizer: special tokens of the same name stay what they are, the end of text becomes its own. Where it does not know
the student's template, rows of plain text teach more.

When: the larger model is of another family. With one vocabulary take `distill`, which also says which token it is.
Watch nll_loss on held-out rows beside that of `sft`; `distance` is between 0 and 2, and its mean is over all tokens.

Defaults: the distance counts 1.5 times. The paper compares the first tokens of both answers, then the second ones, and
so on, which lose each other after the first word that is cut differently; TRL's GOLD multiplies what a word's later
tokens are given into its first distribution. Here only places where both models stand at the same point are compared.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.kernels.divergence import SortedDistance
from luthier.methods.base import Method, Scores


@settings
class Uld(Method):
    """How likely a teacher's likeliest tokens are, beside the answer itself."""

    weight: Annotated[float, Field(ge=0)] = 1.5
    """Weight of the distance; that of the data's tokens is 1."""

    top_k: Annotated[int, Field(ge=1)] = 256
    """So many of the likeliest tokens are compared one by one. `teacher.top_k` goes before it."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Flattens both distributions before they are compared; 1: as they are."""

    metrics: ClassVar[tuple[str, ...]] = ("distance", "nll_loss")

    @property
    def teacher_divergence(self) -> SortedDistance:
        return SortedDistance(self.top_k, self.temperature)

    def count(self, batch: Batch) -> float:
        return float(batch.weight_N.double().sum())

    def coefficients(self, batch: Batch) -> Tensor:
        return -batch.weight_N

    def teacher_coefficients(self, batch: Batch) -> Tensor:
        return self.weight * batch.weight_N

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert scores.divergence_N is not None
        distance = (batch.weight_N * scores.divergence_N).sum()
        nll = -(batch.weight_N * scores.logp_N).sum()
        return self.weight * distance + nll, {"distance": distance, "nll_loss": nll}
