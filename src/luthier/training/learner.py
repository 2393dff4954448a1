"""Forward and backward of the micro-batches of one step: gradients and totals, as if they were one batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.data.sets import tokens_of_sets
from luthier.data.sharing import num_logical_tokens
from luthier.errors import RunError
from luthier.evaluate.extremes import greatest, signed_extremes
from luthier.evaluate.scoring import Scorer
from luthier.methods.base import Method
from luthier.models.activations.assemble import tokens_in_flight
from luthier.models.activations.gauge import HostGauge
from luthier.models.activations.planner import ActivationPlanner
from luthier.models.head_policy import HeadPolicy
from luthier.models.policy import Policy
from luthier.models.reference import OwnStart, Reference
from luthier.optim.gradients import Gradients
from luthier.parallel.cluster import Cluster
from luthier.training.graphs import MicroBatches

BeforeStep = Callable[[int, list[Batch]], list[Batch]]


class Learner:
    """What a step learns from its micro-batches.

    Args:
        policy: maps a batch to the log-probabilities of its predictions.
        method: turns these into a loss.
        gradients: where the gradients are added up.
        cluster: the ranks that share a step.
        reference: what the method compares with, if it does; absent: the policy as it is now.
    """

    def __init__(
        self,
        policy: Policy,
        method: Method,
        gradients: Gradients,
        device: torch.device,
        cluster: Cluster | None = None,
        reference: Reference | None = None,
    ):
        self.policy, self.method, self.gradients, self.device = policy, method, gradients, device
        self.reference = (reference or OwnStart(policy)) if method.needs_reference else None
        self.scorer = Scorer(policy, method, self.reference, cluster or Cluster())
        self.activations = ActivationPlanner(
            [], HostGauge()
        )  # keeps everything until it is told of the layers
        self.before_step: BeforeStep = _as_they_are
        """Makes what a step learns from of this rank's rows; told how many steps were before."""
        self.before_update: Callable[[], None] = lambda: None
        """Called once all micro-batches of a step have added to the gradients of this rank."""
        self.set_names: tuple[str, ...] = ()
        """Of the data sets whose tokens are told apart."""
        self.set_tokens: list[float] = []
        self.in_last = False
        """Whether the last micro-batch of a step is under way."""
        self._left = 0
        self.micro_batches = MicroBatches(self._learn, device)
        # of the step under way; on the device and always the same tensors, so that nothing waits for them
        self.units = torch.ones((), dtype=torch.float64, device=device)
        self.totals_M = torch.zeros(1 + len(method.metrics), dtype=torch.float64, device=device)
        self.extremes_X = torch.full((len(method.extremes),), -torch.inf, dtype=torch.float64, device=device)

    def __call__(self, micro_batches: Sequence[Batch], units: float, step: int = 0) -> Tensor:
        """Adds the gradient of the summed loss over `units`; returns the sums of loss and metrics, on the device.

        `step` is the number of steps before this one; what is drawn at random may depend on it.
        """
        if self.policy.noise is not None:
            self.policy.noise.step = step
        self.totals_M.zero_()
        self.extremes_X.fill_(-torch.inf)
        self.units.fill_(units)
        self.set_tokens = tokens_of_sets(micro_batches, len(self.set_names)) if self.set_names else []
        learned = self.scorer.look_ahead(micro_batches, self.device)
        if (routers := self.policy.routers) is not None:
            routers.begin(self.scorer.cluster.sum([sum(map(num_logical_tokens, learned))])[0])
        self.activations.rerun_if_out_of_memory(lambda: self._learn_all(learned), self._discard)
        self.before_update()
        return self.totals_M

    @property
    def statistics(self) -> Tensor | None:
        """What a method that looks ahead knows from the steps so far, for checkpoints; None for others."""
        return self.scorer.statistics

    @statistics.setter
    def statistics(self, value: Tensor | None) -> None:
        self.scorer.statistics = None if value is None else value.to(self.device)

    def told(self) -> dict[str, float]:
        """What there is to say of the step on all ranks beside sums. Every rank must ask, once a step."""
        cluster, routers = self.scorer.cluster, self.policy.routers
        found = {} if routers is None else routers.end(cluster.sum)
        if self.set_names:
            names = [f"tokens/{name}" for name in self.set_names]
            found |= dict(zip(names, cluster.sum(self.set_tokens), strict=True))
        if self.method.extremes:
            found |= greatest(self.method, cluster.gather(self.extremes_X.tolist()))
        return found

    def after_step(self, step: int) -> None:
        """Told after every update how many there were."""
        if self.reference is not None:
            self.reference.after_step(step)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's summed loss on one batch, by the cheaper head where the method allows it."""
        coefficient_N = self.method.coefficients(batch)
        if coefficient_N is None:
            return self.method.loss(self.scorer(batch), batch)
        loss, scores = self.scorer.linear(batch, coefficient_N)
        return loss, self.method.loss(scores, batch)[1]

    def replay(self, say: Callable[[str], None]) -> None:
        """Replays micro-batches instead of running each anew; they should all have one shape."""
        if self.method.looks_ahead:
            say("micro-batches are not replayed: the method's loss depends on the whole step")
            return
        if isinstance(self.policy, HeadPolicy):
            say("micro-batches are not replayed: where the head reads differs from one to the next")
            return
        if self.policy.noise is not None:
            say("micro-batches are not replayed: the noise on embeddings depends on the step")
            return
        if self.policy.routers is not None:
            say("micro-batches are not replayed: the losses of the routers depend on the whole step")
            return
        self.gradients.hold()
        self.micro_batches.replay(self._clear, say)

    def _learn_all(self, micro_batches: Sequence[Batch]) -> None:
        self._left = len(micro_batches)
        self.micro_batches(micro_batches)

    def _learn(self, batch: Batch) -> None:
        """Forward and backward of one micro-batch: adds to the gradients and to the totals of the step."""
        with self.activations.micro_batch(tokens_in_flight(self.policy, batch)):
            loss, metrics = self.loss(batch)
            self._left -= 1
            self.in_last = self._left == 0
            try:
                (loss / self.units.to(loss.dtype)).backward()
            finally:
                self.in_last = False
        values = [loss.detach(), *(metrics[name].detach() for name in self.method.metrics)]
        self.totals_M += torch.stack([value.to(self.totals_M) for value in values])
        if self.method.extremes:
            self.extremes_X.copy_(self.extremes_X.maximum(signed_extremes(self.method, metrics)))

    def _clear(self) -> None:
        self.gradients.clear()
        self.totals_M.zero_()
        self.extremes_X.fill_(-torch.inf)

    def _discard(self) -> None:
        """Forgets what a pass that ran out of memory has left behind.

        Raises:
            RunError: weights were updated within it.
        """
        if self.gradients.is_spent():
            raise RunError(
                "memory ran out within a backward pass in which weights are updated (train.optimizer_in_backward), so "
                "the step cannot be done again. Set memory.activations: recompute, or lower train.tokens_per_step; "
                "then continue from the last checkpoint with --resume."
            )
        self.micro_batches.replays.clear()
        if self.policy.routers is not None:
            self.policy.routers.forget()
        self._clear()


def _as_they_are(step: int, micro_batches: list[Batch]) -> list[Batch]:
    """Most methods learn the rows of the data."""
    return micro_batches
