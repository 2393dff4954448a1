"""What a frozen model is asked of every prediction of fixed rows, so that the answers can be kept.

Each kind of question says what it is called, what besides the weights decides its answers, and how far two answers are
apart: numbers that were kept are believed only if a few of them are those that the model gives now.

Shape suffixes: N predictions, K tokens of a teacher.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.data.batch import Batch
from luthier.kernels.teacher import TeacherHead, TeacherLogits
from luthier.kernels.top_tokens import as_numbers, top_tokens
from luthier.models import reference, teacher
from luthier.models.cross_teacher import CrossTeacher
from luthier.models.policy import Policy
from luthier.models.reference import frozen_logprobs

Values = NDArray[np.float32]
NOTHING = -30.0
"""Log-probabilities below are alike: nothing that is learned depends on them."""


class Asked:
    """The interface. `name` is that in `Batch.given`, `title` that for people."""

    name: str
    title: str
    key = ""
    """What decides the numbers beside the model's weights and the tokens."""
    width: tuple[int, ...] = ()
    """The shape of what is known of one prediction; (): one number."""

    def __init__(self, policy: Policy):
        self.policy = policy

    def ask(self, batch: Batch) -> torch.Tensor:
        """What the model says, [N, *width] in fp32, without a gradient."""
        raise NotImplementedError

    def off(self, kept: Values, live: Values) -> float:
        """How far apart two answers about the same predictions are: root mean square, in nats."""
        raise NotImplementedError

    def spread(self, kept: Values) -> float:
        """Standard deviation of log-probabilities, beside which a difference is large or small."""
        raise NotImplementedError


class ReferenceLogprobs(Asked):
    """Log-probabilities of the targets by the reference."""

    name, title = reference.GIVEN, "the reference"

    def ask(self, batch: Batch) -> torch.Tensor:
        return frozen_logprobs(self.policy, batch).float()

    def off(self, kept: Values, live: Values) -> float:
        return float(np.sqrt(np.mean((live - kept) ** 2)))

    def spread(self, kept: Values) -> float:
        return float(kept.std())


class TeacherTokens(Asked):
    """The likeliest tokens of a teacher, and how likely they and all others are.

    Args:
        k: how many.
        temperature: that of the divergence.
        vocabulary: of the student; what the teacher has beyond it does not count.
    """

    name, title = teacher.GIVEN, "the teacher"

    def __init__(self, policy: Policy, k: int, temperature: float, vocabulary: int):
        super().__init__(policy)
        self.k, self.temperature, self.vocabulary = k, temperature, vocabulary
        self.key = f":top {k} of {vocabulary} at {temperature!r}"
        self.width = (2 * k + 1,)

    @torch.no_grad()
    def ask(self, batch: Batch) -> torch.Tensor:
        found: TeacherHead | TeacherLogits = self.policy.as_teacher(batch)
        return as_numbers(top_tokens(found, self.k, self.temperature, self.vocabulary))

    def off(self, kept: Values, live: Values) -> float:
        """A token that only one of them has must be about as likely as the last that the other has."""
        k = self.k
        order = np.argsort(live[:, :k], axis=1)
        line = np.arange(len(live), dtype=np.int64)[:, None] * (self.vocabulary + 1)
        ids_L = (line + np.take_along_axis(live[:, :k], order, 1).astype(np.int64)).ravel()
        logp_L = np.take_along_axis(live[:, k : 2 * k], order, 1).ravel()
        wanted_NK = line + kept[:, :k].astype(np.int64)
        place_NK = np.searchsorted(ids_L, wanted_NK).clip(max=len(ids_L) - 1)
        last_N1 = live[:, k : 2 * k].min(1, keepdims=True)
        true_NK = np.where(ids_L[place_NK] == wanted_NK, logp_L[place_NK], last_N1)
        apart = np.concatenate([true_NK, live[:, -1:]], 1).clip(NOTHING) - kept[:, k:].clip(NOTHING)
        return float(np.sqrt(np.mean(apart**2)))

    def spread(self, kept: Values) -> float:
        return float(kept[:, self.k :].clip(NOTHING).std())


class TeacherOrder(Asked):
    """How likely the likeliest tokens of a teacher with another tokenizer are, in order.

    Args:
        teacher: the model, and how it reads the student's documents.
        key: what tells the two tokenizers from others.
    """

    name, title = teacher.GIVEN, "the teacher"

    def __init__(self, teacher: CrossTeacher, key: str):
        super().__init__(teacher.policy)
        self.teacher = teacher
        self.key = f":order {teacher.k} at {teacher.temperature!r} of {key}"
        self.width = (teacher.k + 1,)

    def ask(self, batch: Batch) -> torch.Tensor:
        return self.teacher(batch).logp_NK1

    def off(self, kept: Values, live: Values) -> float:
        return float(np.sqrt(np.mean((live.clip(NOTHING) - kept.clip(NOTHING)) ** 2)))

    def spread(self, kept: Values) -> float:
        return float(kept.clip(NOTHING).std())
