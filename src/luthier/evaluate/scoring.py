"""Everything a method wants to know of a batch, from the model, the reference and the rest of the step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.kernels.teacher import Teacher as Taught
from luthier.methods.base import Method, Scores
from luthier.models.cross_teacher import AnyTeacher
from luthier.models.head_policy import HeadPolicy
from luthier.models.policy import Policy
from luthier.models.reference import Reference
from luthier.parallel.cluster import Cluster


class Scorer:
    """Asks model and reference on behalf of a method.

    Args:
        reference: needed if the method says so.
        cluster: the ranks that share a step.
        teacher: needed if the method learns from one; may be set later.
    """

    def __init__(
        self,
        policy: Policy,
        method: Method,
        reference: Reference | None,
        cluster: Cluster,
        teacher: AnyTeacher | None = None,
    ):
        assert reference is not None or not method.needs_reference, "the method compares with a reference"
        self.policy, self.method, self.cluster = policy, method, cluster
        self.reference = reference if method.needs_reference else None
        self.teacher = teacher
        self.statistics: Tensor | None = None
        """What the losses of the step under way are given, of a method that looks ahead."""

    def __call__(self, batch: Batch) -> Scores:
        """The scores of a batch, differentiable in what the model says of it."""
        if isinstance(self.policy, HeadPolicy):
            values = self.policy(batch)
            return Scores(values.new_zeros(0), step=self.statistics, values=values)
        reference_N = self.reference.logprobs(batch) if self.reference else None
        if (measure := self.method.teacher_divergence) is not None:
            logp_N, divergence_N = self.policy.divergence(batch, self._taught(batch), measure)
            return Scores(logp_N, reference_N, self.statistics, divergence_N=divergence_N)
        if not (names := self.method.needs_distribution):
            return Scores(self.policy(batch), reference_N, self.statistics)
        found = self.policy.statistics(batch, names)
        return Scores(found.pop("logp"), reference_N, self.statistics, distribution=found)

    def linear(self, batch: Batch, coefficient_N: Tensor) -> tuple[Tensor, Scores]:
        """The loss of a method that knows its coefficients, with its gradient formed on the way; scores detached."""
        if (measure := self.method.teacher_divergence) is not None:
            of_divergence_N = self.method.teacher_coefficients(batch)
            loss, logp_N, divergence_N = self.policy.linear_divergence(
                batch, self._taught(batch), measure, coefficient_N, of_divergence_N
            )
            return loss, Scores(logp_N, divergence_N=divergence_N)
        loss, logp_N = self.policy.linear_loss(batch, coefficient_N)
        return loss, Scores(logp_N)

    def _taught(self, batch: Batch) -> Taught:
        assert self.teacher is not None, "the method learns from a teacher"
        return self.teacher(batch)

    @torch.no_grad()
    def look_ahead(self, batches: Sequence[Batch], device: torch.device) -> list[Batch]:
        """Shows a method that looks ahead all batches of a step; returns the parts of them that it learns from.

        Every rank takes part, even one without batches.
        """
        if self.method.looks_ahead:
            mine = [lines_LK for batch in batches if len(lines_LK := self._preview(batch, device))]
            everyone = [lines_LK for rank in self.cluster.gather(mine) for lines_LK in rank]
            lines_LK = torch.cat(everyone) if everyone else torch.zeros(0, 0).double()
            before = None if self.statistics is None else self.statistics.double().cpu()
            self.statistics = self.method.statistics(lines_LK, before).to(device)
        learned = [self.method.learned(batch) for batch in batches]
        return [batch for batch in learned if batch is not None]

    def _preview(self, batch: Batch, device: torch.device) -> Tensor:
        part = self.method.previewed(batch)
        if part is None:
            return torch.zeros(0, 0).double()
        part = part.to(device)
        was_training = self.policy.training
        self.policy.eval()  # no dropout: a statistic should not be noisier than it must
        lines_LK = self.method.preview(self(part), part)
        self.policy.train(was_training)
        return lines_LK.double().cpu()
