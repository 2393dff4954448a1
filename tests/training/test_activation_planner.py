"""The planner measures, plans again, and gives way when memory runs out."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.errors import ConfigError, RunError
from luthier.kernels.head import CPU_CHUNK_BYTES
from luthier.models.activations.assemble import _head_bytes, plan_activations
from luthier.models.activations.gauge import HostGauge, Peak
from luthier.models.activations.levels import Level
from luthier.models.activations.offload import HostStore
from luthier.models.activations.planner import ActivationPlanner, Demand, is_out_of_memory
from luthier.models.policy import Policy
from tiny_models import tiny_llama
from training_parts import make_trainer

ALL, INPUT, AWAY = Level.KEEP_ALL, Level.KEEP_INPUT, Level.OFFLOAD_INPUT


@dataclass
class Layer:
    """Keeps 10 bytes per token, or 1."""

    level: Level = ALL
    levels: tuple[Level, ...] = (ALL, INPUT, AWAY)

    def bytes_per_token(self, level: Level) -> int:
        return {ALL: 10, INPUT: 1, AWAY: 0}[level]

    def flops_per_token(self, level: Level) -> float:
        return 0.0 if level is ALL else 100.0


@dataclass
class Machine:
    """A made-up device on which a micro-batch takes what its layers keep, times `factor`."""

    layers: list[Layer]
    size: int
    factor: float = 1.0
    used: int = 0
    peaks: list[int] = field(default_factory=list)
    tokens: int = 0

    def free(self) -> int:
        return self.size - self.used

    def in_use(self) -> int:
        return self.used

    def needs(self, tokens: int) -> int:
        return int(tokens * self.factor * sum(layer.bytes_per_token(layer.level) for layer in self.layers))

    @contextmanager
    def watch(self) -> Iterator[Peak]:
        peak = Peak()
        yield peak
        peak.bytes = self.used + self.needs(self.tokens)
        self.peaks.append(peak.bytes)

    def run(self, planner: ActivationPlanner, tokens: int) -> list[Level]:
        """One micro-batch; the levels it ran under."""
        self.tokens = tokens
        with planner.micro_batch(tokens):
            if self.needs(tokens) > self.free():
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")
            return [layer.level for layer in self.layers]


def machine(size: int, num: int = 4, factor: float = 1.0) -> Machine:
    return Machine([Layer() for _ in range(num)], size, factor)


def test_all_is_kept_where_there_is_room_and_said_once() -> None:
    box, lines = machine(100_000), []
    planner = ActivationPlanner(box.layers, box, tell=lines.append)
    for tokens in (100, 90, 100, 120):
        assert box.run(planner, tokens) == [ALL] * 4
    assert len(lines) == 1 and lines[0].startswith("activations: all 4 layers kept (0.0 of 0.0 GB for 100 ")


def test_a_larger_micro_batch_is_planned_for_before_it_runs() -> None:
    box = machine(10_000)
    planner = ActivationPlanner(box.layers, box, share=0.6)
    assert box.run(planner, 100) == [ALL] * 4
    large = box.run(planner, 400)
    assert INPUT in large
    assert box.run(planner, 100) == large  # a smaller one changes nothing
    assert len(box.peaks) == 2  # and is not watched


def test_what_was_measured_corrects_the_plan_upwards_and_downwards() -> None:
    cautious = machine(7_400)  # by formula 100 * (40 + 10) is too much for 85 % of 60 %
    planner = ActivationPlanner(cautious.layers, cautious, share=0.6)
    assert INPUT in cautious.run(planner, 100)
    assert cautious.run(planner, 100) == [ALL] * 4
    hungry = machine(10_000, factor=2.0)
    planner = ActivationPlanner(hungry.layers, hungry, share=0.6)
    assert hungry.run(planner, 100) == [ALL] * 4
    assert INPUT in hungry.run(planner, 100)
    assert hungry.needs(100) <= 6_000


def test_gradients_and_states_are_set_aside_until_they_are_there() -> None:
    box = machine(20_000)
    present = 0
    demand = Demand(head=0, weights=9_000, present=lambda: present)
    planner = ActivationPlanner(box.layers, box, share=0.6, demand=demand)
    before = box.run(planner, 100)
    assert INPUT in before
    without = ActivationPlanner(box.layers, box, share=0.6)
    assert box.run(without, 100) == [ALL] * 4
    present = box.used = 9_000  # they count once: what is there is not set aside again
    planner.prepare(101)
    assert planner.plan is not None and planner.plan.budget == 3_000


def test_what_ran_out_of_memory_once_is_not_tried_again() -> None:
    box = machine(10_000, factor=4.0)  # takes four times what the formula says
    planner = ActivationPlanner(box.layers, box, share=1.0)
    seen = []

    def step() -> list[Level]:
        seen.append([layer.level for layer in box.layers])
        return box.run(planner, 100)

    levels = planner.rerun_if_out_of_memory(step, lambda: None)
    assert box.needs(100) <= 10_000 and INPUT in levels
    assert [ALL] * 4 in seen and len(seen) >= 2
    for _ in range(3):
        assert planner.rerun_if_out_of_memory(step, lambda: None) == levels


def test_the_end_of_the_rope_is_an_error_that_says_what_to_change() -> None:
    box = machine(10, factor=50.0)
    planner = ActivationPlanner(box.layers, box)
    with pytest.raises(
        RunError, match=r"up to 100 tokens: CUDA out of memory.*lower train\.tokens_per_micro"
    ):
        planner.rerun_if_out_of_memory(lambda: box.run(planner, 100), lambda: None)
    kept = ActivationPlanner(box.layers, box, mode="keep")
    with pytest.raises(RunError, match=r"memory\.activations: keep\); set memory\.activations: auto"):
        kept.rerun_if_out_of_memory(lambda: box.run(kept, 100), lambda: None)
    for mode in ("recompute", "offload"):
        fixed = ActivationPlanner(box.layers, box, mode=mode, offload=True)
        with pytest.raises(RunError, match=r"already; lower train\.tokens_per_micro_batch"):
            fixed.rerun_if_out_of_memory(out_of_memory, lambda: None)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_other_errors_pass_through() -> None:
    planner = ActivationPlanner([], machine(10))

    def fail() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        planner.rerun_if_out_of_memory(fail, lambda: None)


def test_inputs_go_to_ram_only_where_there_is_another_memory() -> None:
    box = machine(10_000)
    with pytest.raises(ConfigError, match=r"memory\.activations is offload, but the model is on the CPU"):
        ActivationPlanner(box.layers, box, mode="offload")
    tight = machine(1_500, num=20)
    planner = ActivationPlanner(tight.layers, tight, share=1.0, offload=True, store=HostStore())
    planner.correction = planner.correction.__class__()
    assert AWAY in tight.run(planner, 80)


@pytest.mark.parametrize(("mode", "level"), [("keep", ALL), ("recompute", INPUT), ("offload", AWAY)])
def test_a_mode_gives_every_layer_its_level(mode: str, level: Level) -> None:
    box = machine(10_000)
    planner = ActivationPlanner(box.layers, box, mode=mode, offload=True)  # pyright: ignore[reportArgumentType]
    assert box.run(planner, 10) == [level] * 4


def test_the_head_is_set_aside_with_its_fewest_rows_and_its_own_gradient() -> None:
    policy = Policy(tiny_llama())
    policy.requires_grad_(False)
    vocabulary, size = policy.model.get_output_embeddings().weight.shape  # pyright: ignore[reportOptionalMemberAccess]
    policy.model.config.vocab_size = 2**20  # so large that the fewest rows of a chunk exceed its usual size
    frozen = _head_bytes(policy, None)
    assert frozen == 2 * 128 * 2**20 * 4 > 2 * CPU_CHUNK_BYTES
    assert _head_bytes(policy, 10) == 2 * 10 * 2**20 * 4
    policy.model.lm_head.requires_grad_(True)
    assert _head_bytes(policy, None) == frozen + vocabulary * size * 8


def test_a_failed_allocation_is_known_by_its_error() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    for said in (
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ):
        assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("something else"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_a_step_that_ran_out_half_way_gives_the_gradients_of_one_that_did_not() -> None:
    def gradients(fail_at: int | None) -> tuple[list[torch.Tensor], set[Level]]:
        trainer = make_trainer(dropout=0.3)
        planner = plan_activations(trainer.policy, trainer.optimizer)
        trainer.policy.train()
        torch.manual_seed(11)
        passes = 0

        def work() -> None:
            nonlocal passes
            for batch in trainer.source.step(0):
                with planner.micro_batch(batch.num_tokens):
                    loss = trainer.learner.loss(batch)[0]
                    loss.backward()  # so that the pass that fails has added to the gradients
                    passes += 1
                    if passes == fail_at:
                        raise torch.OutOfMemoryError("CUDA out of memory")

        def discard() -> None:
            for parameter in trainer.parameters:
                if parameter.grad is not None:
                    parameter.grad.zero_()

        planner.rerun_if_out_of_memory(work, discard)
        found = [p.grad.clone() for p in trainer.parameters if p.grad is not None]
        return found, {layer.level for layer in planner.layers}

    smooth, kept = gradients(None)
    rough, lowered = gradients(2)
    assert kept == {ALL} and INPUT in lowered
    assert all(map(torch.equal, smooth, rough))


def test_the_peak_of_the_host_is_seen_between_looks() -> None:
    gauge = HostGauge()
    with gauge.watch() as peak:
        start = gauge.in_use()
        block = torch.ones(2**25)  # 128 MiB
        for _ in range(20):
            block.mul_(1.0)
        del block
    assert peak.exact
    assert 120 << 20 < peak.bytes - start < 160 << 20
    assert HostGauge(processes=4).free() <= HostGauge().free() // 3


def capped(*arguments: str) -> list[dict[str, Any]]:
    """What `capped_step.py` reports, step by step."""
    command = [sys.executable, str(Path(__file__).with_name("capped_step.py")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Any]]:
    """A step that keeps everything and takes what it wants, and one that may take 70 % of that."""
    return capped("--limit", "0.7")


def test_the_plan_foretells_what_a_step_takes(steps: list[dict[str, Any]]) -> None:
    assert steps[0]["ended"] == "done" and steps[0]["kept"] == 12
    assert steps[0]["taken"] == pytest.approx(steps[0]["need"], rel=0.25)


def test_a_limit_is_kept_and_the_gradient_stays(steps: list[dict[str, Any]]) -> None:
    free, limited = steps
    assert limited["ended"] == "done" and 0 < limited["kept"] < 12
    assert limited["taken"] < 0.7 * free["taken"]
    assert limited["taken"] < 1.1 * limited["need"]
    assert limited["gradient"] == free["gradient"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are only certain on Linux")
def test_where_keeping_all_fails_auto_finds_a_way(steps: list[dict[str, Any]]) -> None:
    keep, auto = capped("--cap", str(0.7 * steps[0]["taken"]))
    assert keep["ended"] == "RunError"
    assert auto["ended"] == "done" and auto["tries"] > 1 and auto["kept"] < 12
    assert auto["gradient"] == steps[0]["gradient"]
