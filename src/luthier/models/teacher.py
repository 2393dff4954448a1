"""What a student learns from, prediction by prediction: a frozen second model, or what one said beforehand."""

import torch

from luthier.data.batch import Batch
from luthier.kernels.teacher import SortedTokens, TeacherHead, TeacherLogits, TopTokens
from luthier.kernels.top_tokens import from_numbers
from luthier.models.policy import Policy

GIVEN = "teacher"
"""The name under which batches carry the likeliest tokens of a teacher."""


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


class KnownTeacher:
    """What was made beforehand: every batch brings it along, so that the model itself need not be there.

    Args:
        ordered: it is how likely the likeliest tokens are, in order; else also which these are.
    """

    def __init__(self, ordered: bool = False):
        self.ordered = ordered

    def __call__(self, batch: Batch) -> TopTokens | SortedTokens:
        """The likeliest tokens of every prediction."""
        assert GIVEN in batch.given, "the rows were looked up"
        known = batch.given[GIVEN]
        return SortedTokens(known) if self.ordered else from_numbers(known)
