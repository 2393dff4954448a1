"""Distillation on the model's own answers: a teacher says, token by token, how it would have gone on from them.

loss = Σ_n w_n · D_n / Σ_n w_n

D_n is the divergence of the two distributions over the whole vocabulary (arXiv:2306.13649). p: teacher, q: student,
m = beta p + (1 - beta) q:

    beta 0          KL(p ‖ q): the student covers all that the teacher says
    beta 1          KL(q ‖ p): the student keeps to what the teacher says most
    0 < beta < 1    beta KL(p ‖ m) + (1 - beta) KL(q ‖ m)

In a share `lmbda` of the steps the student first answers the prompts of the step's rows, drawn with `temperature`, and
learns from what it wrote; in the others from the answers of the data. No gradient goes through the drawing. So it
learns where its own words lead, which the answers of somebody else never show it. A row's prompt is all that stands
before the last thing it teaches. Which steps, and every draw, follow from seed, step and row: resuming repeats them.

The teacher is named by `teacher: NAME` beside `method` and must have the student's vocabulary. With lmbda 0 it may be
asked once (`teacher.top_k`).

When: after `distill` or `sft`, when the model writes sensible answers already; its first words should not be noise.
Watch the loss on held-out rows, which keep the data's answers: it compares across all settings of lmbda. Generating
costs more than learning: a step of own answers takes several times as long.

Defaults are those of the paper and of TRL's GKD: lmbda 0.5, beta 0.5, temperature 0.9 of the draws (the divergence is
taken at 1), 128 tokens. TRL draws for each micro-batch whether it is on-policy; here it is drawn for the step.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.kernels.divergence import Divergence
from luthier.methods.base import Method, Sampling, Scores


@settings
class Gkd(Method):
    """A teacher's distribution of every token, of the data's answers and of the model's own."""

    lmbda: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the steps that learn from the model's own answers. 0: none, 1: all."""

    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    """0: forward KL, 1: reverse KL, between them the generalised Jensen-Shannon divergence."""

    temperature: Annotated[float, Field(gt=0)] = 0.9
    """Of the draws. Lower is closer to the model's likeliest answer."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest answer that the model writes, in tokens."""

    metrics: ClassVar[tuple[str, ...]] = ("nll_loss",)

    @property
    def teacher_divergence(self) -> Divergence:
        return Divergence(self.beta)

    @property
    def sampling(self) -> Sampling | None:
        if not self.lmbda:
            return None
        return Sampling(self.lmbda, temperature=self.temperature, max_new_tokens=self.max_new_tokens)

    def count(self, batch: Batch) -> float:
        return float(batch.weight_N.double().sum())

    def coefficients(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.weight_N)

    def teacher_coefficients(self, batch: Batch) -> Tensor:
        return batch.weight_N

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert scores.divergence_N is not None
        nll = -(batch.weight_N * scores.logp_N).sum()
        return (batch.weight_N * scores.divergence_N).sum(), {"nll_loss": nll.detach()}
