"""Sets the levels of a model's layers for the memory at hand, and corrects itself by what it sees.

Before the first micro-batch a plan is made by formula, with part of the budget held back. The largest micro-batch
so far is watched while it runs; what it took corrects the formula, and the plan is made anew. A larger one than any
before is planned for before it runs. If memory runs out after all, the step is run again under a lower plan.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from luthier.errors import ConfigError, RunError
from luthier.models.activations.gauge import Gauge
from luthier.models.activations.levels import Level, Plannable
from luthier.models.activations.offload import HostStore
from luthier.models.activations.plan import Budget, Correction, Plan, choose, corrected, options_of, uniform

Mode = Literal["auto", "keep", "recompute", "offload"]
Result = TypeVar("Result")

CAUTION = 0.85  # share of the budget that is used before anything was measured
YIELD = 0.75  # after running out of memory, what the plan needed is cut to this share, or further
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Demand:
    """What training takes besides the activations of layers."""

    head: int = 0
    """Bytes that the output head takes at its peak: one chunk of logits and its gradient."""
    weights: int = 0
    """Bytes of gradients and optimizer states, once they are all there."""
    present: Callable[[], int] = lambda: 0
    """How many of these are there now."""


class ActivationPlanner:
    """Decides what each layer keeps, micro-batch by micro-batch.

    Args:
        layers: from first to last.
        gauge: of the device that they compute on.
        mode: `auto` decides by memory; the others give every layer the same level.
        share: of the free memory, how much may be used.
        demand: what else training takes.
        offload: whether there is another memory to offload to.
        store: where inputs wait that were offloaded.
        tell: gets a line whenever the plan changes.
    """

    def __init__(
        self,
        layers: Sequence[Plannable],
        gauge: Gauge,
        *,
        mode: Mode = "auto",
        share: float = 0.6,
        demand: Demand | None = None,
        offload: bool = False,
        store: HostStore | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ):
        if mode == "offload" and not offload:
            raise ConfigError(
                "memory.activations is offload, but the model is on the CPU, where there is no other memory to "
                "offload to. Set memory.activations: auto."
            )
        self.layers, self.gauge, self.mode, self.share = list(layers), gauge, mode, share
        self.demand, self.offload, self.store, self.tell = demand or Demand(), offload, store, tell
        self.options = [options_of(layer) for layer in self.layers]
        working = max((max(o.bytes for o in options) for options in self.options), default=0)
        self.correction = Correction(extra=working)  # until measured: the layer in flight takes as much again
        self.measured_tokens = 0
        self.ceiling: int | None = None  # what ran out of memory once is not tried again
        self.at_start: _Start | None = None
        self.plan: Plan | None = None

    @contextmanager
    def micro_batch(self, tokens: int) -> Iterator[None]:
        """Around the forward and backward pass of a micro-batch: plans before it, learns from it after it."""
        if self.store is not None:
            self.store.forget()  # what a pass that failed half-way has left there
        self.prepare(tokens)
        if tokens <= self.measured_tokens or not self.layers:
            yield
            return
        with self.gauge.watch() as peak:
            yield
        self._learn(tokens, peak.bytes, peak.exact)

    def prepare(self, tokens: int) -> None:
        """Makes a plan if none was made for as many tokens."""
        if self.plan is None or tokens > self.plan.tokens:
            self._apply(tokens)

    def lower(self) -> bool:
        """Gives way after memory ran out: sets a plan that keeps less. False if there is none."""
        plan = self.plan
        if self.mode != "auto" or plan is None:
            return False
        self.ceiling = min(plan.need, plan.budget)
        while self.plan is not None and self.plan.levels == plan.levels:
            if not self.plan.fits:  # even the lowest plan is above the ceiling: it is the one that ran out
                return False
            self.ceiling = int(self.ceiling * YIELD)
            self._apply(plan.tokens)
        return True

    def rerun_if_out_of_memory(self, work: Callable[[], Result], discard: Callable[[], None]) -> Result:
        """What `work` returns. If it runs out of memory, it is run again from its start under a lower plan.

        `work` is all that adds to the gradients since they were last zero: only so can what a half-finished pass
        added be told from what was there. `discard` sets them to zero again. Random numbers are drawn anew from
        where they stood, so the result is that of a run that never ran out.

        Raises:
            RunError: nothing is left to give way.
        """
        random = _RandomState()
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                message = (str(error).splitlines() or [type(error).__name__])[0]
            # outside of the handler: its traceback holds the frames that hold the activations
            discard()
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            if not self.lower():
                raise RunError(self._exhausted(message))
            random.restore()

    def _exhausted(self, message: str) -> str:
        plan = self.plan
        tokens = f"{plan.tokens:,} tokens" if plan else "its tokens"
        how = {
            "keep": "Every layer keeps its activations (memory.activations: keep); set memory.activations: auto",
            "auto": "No layer keeps more than its input already; lower train.tokens_per_micro_batch or data.max_length",
            "recompute": "Every layer is recomputed already; lower train.tokens_per_micro_batch or data.max_length",
            "offload": "Every layer is offloaded already; lower train.tokens_per_micro_batch or data.max_length",
        }[self.mode]
        return f"memory ran out in a micro-batch of up to {tokens}: {message} {how}."

    def _apply(self, tokens: int) -> None:
        """Makes the plan for this many tokens and sets it."""
        plan, budget = None, self._budget()
        if self.mode == "auto":
            plan = choose(self.options, tokens, budget, offload=self.offload)
        else:
            level = {"keep": Level.KEEP_ALL, "recompute": Level.KEEP_INPUT, "offload": Level.OFFLOAD_INPUT}
            plan = uniform(self.options, level[self.mode], tokens, budget)
        changed = self.plan is None or plan.levels != self.plan.levels
        self.plan = plan
        for layer, level in zip(self.layers, plan.levels, strict=True):
            layer.level = level
        if changed and self.layers:
            self.tell(plan.line())

    def _start(self) -> "_Start":
        """How things stood before the first micro-batch."""
        if self.at_start is None:
            self.at_start = _Start(self.gauge.in_use(), self.demand.present())
        return self.at_start

    def _budget(self) -> Budget:
        """What a micro-batch may take: a share of what would be free if training had taken nothing yet."""
        start = self._start()
        free = max(0, self.gauge.free() + self.gauge.in_use() - start.in_use)
        share = self.share if self.measured_tokens else self.share * CAUTION
        room = int(share * free) - max(0, self.demand.weights - start.weights)
        room = room if self.ceiling is None else min(room, self.ceiling)
        return Budget(max(0, room), self.demand.head, self.correction)

    def _learn(self, tokens: int, peak: int, exact: bool) -> None:
        """Corrects the formula by the most that was in use, and plans anew.

        Not after memory ran out: the ceiling was found with the formula as it is, and stands for what ran out only
        as long as that stays.
        """
        plan, start = self.plan, self._start()
        assert plan is not None, "it was made before the micro-batch ran"
        self.measured_tokens = tokens
        if self.ceiling is not None:
            return
        weights = self.demand.present() - start.weights
        measured = max(0, peak - start.in_use - weights)
        budget = Budget(plan.budget, self.demand.head, self.correction)
        self.correction = corrected(self.options, plan, tokens, measured, exact, budget)
        self._apply(max(tokens, plan.tokens))


@dataclass(frozen=True)
class _Start:
    """How things stood before the first micro-batch, in bytes."""

    in_use: int
    weights: int
    """Gradients and optimizer states that were already there."""


class _RandomState:
    """Where the random numbers of the CPU and of this process's GPU stand."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.gpu: Tensor | None = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in RAM: in torch's allocators, or in CUDA's libraries, which have no
    error of their own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        said in str(error) for said in _OUT_OF_MEMORY
    )
