"""A frozen second model that a student learns from, prediction by prediction."""

import torch

from luthier.data.batch import Batch
from luthier.kernels.teacher import TeacherHead, TeacherLogits
from luthier.models.policy import Policy


class Teacher:
    """Reads the student's tokens; how documents go through it is its own affair.

    Args:
        policy: the model, where the student is; it is frozen here.
    """

    def __init__(self, policy: Policy):
        self.policy = policy.requires_grad_(False).eval()

    @property
    def num_bytes(self) -> int:
        """Memory that its weights take."""
        return sum(weight.numel() * weight.element_size() for weight in self.policy.parameters())

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherHead | TeacherLogits:
        """What it makes of every prediction, without a gradient: nothing of the size of the vocabulary, if it can."""
        return self.policy.as_teacher(batch)
