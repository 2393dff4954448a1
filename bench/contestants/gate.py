"""What the gate looks at, in one process: speed next to the machine's own, memory, page faults, losses, the head.

Speed is counted in units of the machine: operations of a step over its time, divided by the rate at which the
machine multiplied matrices just before and just after that step. Whatever slows both slows neither.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.contestants import luthier_sft, reference
from bench.protocol import Spec, Wire, peak_memory
from bench.roofline import training_cost, work_of
from bench.rows import Rows, load_rows
from bench.shapes import SHAPES

BURST = 0.25
"""Seconds of matrix products between steps."""


class Recorder(Wire):
    """Keeps events instead of sending them."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def send(self, event: str, **facts: Any) -> None:
        self.events.append({"event": event, **facts})

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return [event["loss"] for event in self.events if event["event"] == "step"]


def run(spec: Spec, wire: Wire) -> None:
    """Sends one `result` a check. Speed comes last, and after every attempt: a time limit costs only the rest."""
    from luthier.threads import wait_without_spinning

    wait_without_spinning()
    wire.send("result", name="loss_drift", value=loss_drift(spec["parity"]))
    wire.send("result", name="largest_tensor", value=largest_tensor(spec["head"]))
    for best in speeds(spec):
        for name, value in best.items():
            wire.send("result", name=name, value=value)


def speeds(spec: Spec) -> Iterator[dict[str, Any]]:
    """Efficiency, peak memory and page faults a step of workload A in small: the best so far after each attempt.

    One attempt takes the median over its steps. If that is under `wanted`, there is another one, as long as
    there is time: something else may have computed beside this one, and a real loss stays. Every attempt takes
    rows that none before it saw, as training does: what asks for new memory with new lengths goes on doing so.
    """
    rows = load_rows(spec["rows"])
    if len(rows) < (seen := spec["samples"] * (spec["warm_up"] + spec["steps"] * spec["attempts"])):
        raise ValueError(f"{len(rows)} rows are too few: {seen} are seen, each once")
    trainer, _ = luthier_sft.build(spec, luthier_sft.Documents(rows))
    trainer.source = luthier_sft.steps_of_rows(trainer, spec["samples"])
    trainer.policy.train()
    for step in range(spec["warm_up"]):
        trainer.step(trainer.source.step(step))
    attempts: list[dict[str, float]] = []
    end = time.monotonic() + spec["seconds"]
    while not attempts or (len(attempts) < spec["attempts"] and time.monotonic() < end):
        attempts.append(attempt(trainer, rows, spec, spec["warm_up"] + len(attempts) * spec["steps"]))
        best = max(attempts, key=lambda found: found["efficiency"])
        # faults: the least of the attempts, for the same reason; memory only grows, so the last tells the peak
        faults = min(found["faults_per_step"] for found in attempts)
        yield {**best, "faults_per_step": faults, "peak_bytes": peak_memory(), "attempts": len(attempts)}
        # the first attempt still meets packs larger than any before
        if attempts[-1]["efficiency"] >= spec["wanted"] and faults <= spec["most_faults"]:
            break


def attempt(trainer: Any, rows: Rows, spec: Spec, first: int) -> dict[str, float]:
    """A few steps from the step `first` on, with matrix products in between."""
    import resource

    shape, micro, samples = SHAPES[spec["shape"]], trainer.source.micro_tokens, spec["samples"]
    product = products(shape.hidden, shape.intermediate, min(1024, micro))
    efficiencies, speeds, faults = [], [], 0
    before = product()
    for step in range(first, first + spec["steps"]):
        work = work_of(rows.between(step * samples, (step + 1) * samples))
        operations = training_cost(shape, work, spec["rank"]).operations
        batches = trainer.source.step(step)
        faults -= resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        report = trainer.step(batches)
        elapsed = time.perf_counter() - start
        faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        after = product()
        rate = report.values["tokens"] / elapsed
        speeds.append(rate)
        efficiencies.append(rate * operations / statistics.mean((before, after)))
        before = after
    return {
        "efficiency": statistics.median(efficiencies),
        "tokens_per_second": statistics.median(speeds),
        "products_per_second": before,
        "faults_per_step": faults / spec["steps"],
    }


def products(inputs: int, outputs: int, tokens: int) -> Any:
    """A function that multiplies matrices for a moment and returns the mean operations a second.

    The mean and not the best, since a step has no best either: both suffer alike from what else is going on.
    """
    import torch
    from torch.nn.functional import linear

    x, weight = torch.randn(tokens, inputs), torch.randn(outputs, inputs)

    def multiply() -> float:
        linear(x, weight)
        start, done = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < BURST:
            linear(x, weight)
            done += 1
        return 2.0 * tokens * inputs * outputs * done / elapsed

    return multiply


def loss_drift(spec: Spec) -> float:
    """Largest relative difference of a step's loss from the plain model's, in fp32, over a few steps."""
    mine, plain = Recorder(), Recorder()
    luthier_sft.run(spec, mine)
    reference.run(spec, plain)
    assert len(mine.losses) == len(plain.losses) > 0
    return max(abs(a - b) / abs(b) for a, b in zip(mine.losses, plain.losses, strict=True))


def largest_tensor(spec: Spec) -> dict[str, int]:
    """Elements of the largest tensor that a step makes, and of the one it must not make: [N, V] logits."""
    rows = load_rows(spec["rows"])
    trainer, _ = luthier_sft.build(spec, luthier_sft.Documents(rows))
    trainer.source = luthier_sft.steps_of_rows(trainer, spec["samples"])
    trainer.policy.train()
    batches = trainer.source.step(0)
    largest = largest_made(lambda: trainer.step(batches))
    learned = min(len(batch.target_N) for batch in batches)
    return {"largest": largest, "forbidden": learned * SHAPES[spec["shape"]].vocabulary}


def largest_made(call: Callable[[], Any]) -> int:
    """Elements of the largest tensor that any operation of torch gives while `call` runs, backward included."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes = (leaf.numel() for leaf in tree_leaves(out) if hasattr(leaf, "numel"))
            self.largest = max([self.largest, *sizes])
            return out

    with Watch() as watch:
        call()
    return watch.largest
