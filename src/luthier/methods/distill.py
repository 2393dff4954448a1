"""Distillation on given answers: make the model say what a larger one says, token by token.

loss = Σ_n w_n · (alpha · T² · D_n - (1 - alpha) · log p(target_n | everything before it)) / Σ_n w_n

D_n is the divergence of the two distributions at temperature T over the whole vocabulary (arXiv:1503.02531; T² keeps
the size of its gradient when T changes). p: teacher, q: student, m = beta p + (1 - beta) q (arXiv:2306.13649):

    beta 0          KL(p ‖ q): the student covers all that the teacher says
    beta 1          KL(q ‖ p): the student keeps to what the teacher says most
    0 < beta < 1    beta KL(p ‖ m) + (1 - beta) KL(q ‖ m); as small as 1 - beta or beta near the ends

The teacher is named by `teacher: NAME` beside `method`. It reads the student's tokens, so both need the same
vocabulary. It stays in memory and costs a forward pass a step, or is asked once for its likeliest tokens, which are
kept on disk (`teacher: {name: NAME, top_k: 64}`); D_n is then a lower bound. Logits of neither are ever held at once.

When: a larger model of the same family does the task, and a smaller one is to. Watch divergence (0: the student is
the teacher) and nll_loss on held-out rows beside that of `sft`.

Defaults: forward KL with a tenth of the plain loss, at temperature 1. The answers come from the data; `gkd` draws some
from the student, as TRL's GKD does; TRL's Distillation draws all of them, with beta 1.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.kernels.divergence import Divergence
from luthier.methods.base import Method, Scores


@settings
class Distill(Method):
    """A teacher's distribution of every target token, beside the token itself."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Weight of the teacher; the rest is the weight of the data."""

    beta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0: forward KL, 1: reverse KL, between them the generalised Jensen-Shannon divergence."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Flattens both distributions before they are compared; 1: as they are."""

    metrics: ClassVar[tuple[str, ...]] = ("divergence", "nll_loss")

    @property
    def teacher_divergence(self) -> Divergence:
        return Divergence(self.beta, self.temperature)

    def count(self, batch: Batch) -> float:
        return float(batch.weight_N.double().sum())

    def coefficients(self, batch: Batch) -> Tensor:
        return (self.alpha - 1) * batch.weight_N

    def teacher_coefficients(self, batch: Batch) -> Tensor:
        return self.alpha * self.temperature**2 * batch.weight_N

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert scores.divergence_N is not None
        divergence, nll = (
            (batch.weight_N * scores.divergence_N).sum(),
            -(batch.weight_N * scores.logp_N).sum(),
        )
        loss = self.alpha * self.temperature**2 * divergence + (1 - self.alpha) * nll
        return loss, {"divergence": divergence, "nll_loss": nll}
