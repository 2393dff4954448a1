"""The training loop. Every method, every model and every cluster goes through it.

One step: count the units that its micro-batches hold on all ranks together, then run each forward and backward with its
summed loss divided by that count. So the gradient is that of the mean over the whole step, however that was cut.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.data.loader import StepSource
from luthier.data.sharing import num_logical_tokens
from luthier.data.stream import StreamSource
from luthier.errors import RunError
from luthier.methods.base import Method
from luthier.models.policy import Policy
from luthier.models.reference import Reference
from luthier.optim.gradients import Gradients
from luthier.optim.schedules import Schedule
from luthier.parallel.cluster import Cluster
from luthier.training.learner import Learner
from luthier.training.nonfinite import explain_nonfinite
from luthier.training.progress import Progress, Report

Hook = Callable[["Trainer", Report], None]


class Trainer:
    """Runs `method` on `policy` over the steps of `source`.

    Args:
        policy: maps a batch to the log-probabilities of its predictions.
        method: turns these into a loss.
        source: the micro-batches of each optimizer step.
        schedule: factor on each group's `lr`; its `total_steps` end the run, or `max_tokens`, which it follows then.
        hooks: called in order after every step: logging, evaluation, checkpoints.
        reference: what the method compares with, if it does; absent: the policy as it is now.
    """

    def __init__(
        self,
        policy: Policy,
        method: Method,
        source: StepSource | StreamSource,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        cluster: Cluster,
        *,
        max_grad_norm: float | None = 1.0,
        max_tokens: int | None = None,
        hooks: Sequence[Hook] = (),
        reference: Reference | None = None,
    ):
        self.policy, self.method, self.source = policy, method, source
        self.optimizer, self.schedule, self.cluster = optimizer, schedule, cluster
        self.max_grad_norm, self.max_tokens, self.hooks = max_grad_norm, max_tokens, list(hooks)
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.gradients: Gradients = getattr(optimizer, "gradients", None) or Gradients(self.parameters)
        self.learner = Learner(policy, method, self.gradients, self.device, cluster, reference)
        self.peak_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.progress = Progress()
        self.interrupted = ""  # the signal that asks this rank to stop

    def run(self) -> Progress:
        """Trains until the schedule ends or something asks to stop."""
        while not self._agreed_to_stop() and self.progress.step < self._num_steps():
            self.policy.train()
            report = self.step(self.source.step(self.progress.step))
            for hook in self.hooks:
                hook(self, report)
        return self.progress

    def step(self, micro_batches: list[Batch]) -> Report:
        """One optimizer step over this rank's micro-batches."""
        start = time.perf_counter()
        micro_batches = self.learner.before_step(self.progress.step, micro_batches)
        units, tokens = self._count(micro_batches)
        lr = self._set_rates()
        totals_M = self.learner(micro_batches, units, self.progress.step)
        self.gradients.collect(self.cluster.sum)
        self.cluster.sum_in_place(self.gradients.tensors())
        values = self._means(totals_M, units) | {"lr": lr}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            explain_nonfinite(self, micro_batches, values)
        self._clip(values["grad_norm"])
        self.optimizer.step()
        self.gradients.clear()
        elapsed = time.perf_counter() - start
        self.progress.took_step(int(tokens), elapsed)
        self.learner.after_step(self.progress.step)
        return Report(self.progress.step, values | {"tokens": tokens, "tokens_per_second": tokens / elapsed})

    def interrupt(self, reason: str) -> None:
        """Asks to stop after the step under way, or at once where it waits for rows: by raising `StopWaiting`."""
        self.interrupted = reason
        self.source.stop_waiting()

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, as known by now."""
        return self.progress.total_steps(self.schedule.total_steps, self.max_tokens)

    def _num_steps(self) -> int:
        """Steps of the run, which a stream of rows knows better and better; the schedule is stretched to them."""
        if self.max_tokens is not None:
            return self.total_steps
        self.schedule = replace(self.schedule, total_steps=self.source.ready(self.schedule.total_steps))
        return self.schedule.total_steps

    def _agreed_to_stop(self) -> bool:
        """Whether to stop before the next step. All ranks leave at the same one, whichever got the signal."""
        if self.cluster.sum([bool(self.interrupted)])[0] > 0:
            self.interrupted = self.interrupted or "another rank was interrupted"
        return bool(self.progress.stopping or self.interrupted)

    def _count(self, micro_batches: list[Batch]) -> tuple[float, float]:
        """Units and tokens of this step on all ranks together, counted before any forward pass."""
        mine = [sum(map(self.method.count, micro_batches)), sum(map(num_logical_tokens, micro_batches))]
        units, tokens = self.cluster.sum(mine)
        if units == 0:
            raise RunError(
                f"step {self.progress.step + 1} has nothing to learn from: none of its {tokens:.0f} tokens is a "
                "target. Look at the rows with `luthier data inspect`."
            )
        return units, tokens

    def _means(self, totals_M: Tensor, units: float) -> dict[str, float]:
        """Each total over all ranks, divided by the count, and the gradient's norm: the step's one wait for the GPU."""
        *totals, norm = torch.cat([totals_M, self.gradients.norm().to(totals_M)[None]]).tolist()
        names = ("loss", *self.method.metrics)
        means = {n: value / units for n, value in zip(names, self.cluster.sum(totals), strict=True)}
        return self.method.report(means) | self.learner.told() | {"grad_norm": norm}

    def _clip(self, norm: float) -> None:
        """Scales the gradients down to `max_grad_norm`, if their norm is larger."""
        factor = (self.max_grad_norm or math.inf) / (norm + 1e-6)  # as torch's clip_grad_norm_
        if factor < 1:
            self.gradients.scale(factor)

    def _set_rates(self) -> float:
        factor = self.schedule(self.progress.position(self.schedule.total_steps, self.max_tokens))
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor
        return self.peak_lrs[0] * factor
