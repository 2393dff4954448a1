"""Law 2: no split into micro-batches or ranks changes the gradient. And what a step refuses to do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.data.batch import Batch, Example, Segment, collate
from luthier.errors import RunError
from luthier.parallel.cluster import Cluster
from training_parts import ROOT, Rows, arranged_rows, chat_rows, make_trainer, method_names, trained_weights


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


def gradient_of(method: str, split: list[list[Example]], lora: bool) -> dict[str, torch.Tensor]:
    """What one step over these micro-batches subtracts from the weights: with SGD at rate 1, the gradient."""
    trainer = make_trainer(method=method, lora=lora, optimizer=sgd, max_grad_norm=None)
    trainer.schedule.__dict__["warmup_steps"] = 0
    if lora:  # with B = 0 the gradient of A would be zero, and nothing would be tested
        with torch.no_grad():
            for name, parameter in trainer.policy.named_parameters():
                if "lora_b" in name.lower():
                    parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(5))
    before = trained_weights(trainer)
    trainer.step([collate(rows) for rows in split])
    return {name: before[name] - after for name, after in trained_weights(trainer).items()}


def rounding(weight: torch.Tensor, gradient: torch.Tensor) -> float:
    """How far two gradients may differ that are read from a weight and its updated self, which is rounded to fp32."""
    return 2 * 2**-24 * float(weight.norm() + gradient.norm())


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("lora", [True, False])
def test_any_split_into_micro_batches_gives_the_same_gradient(method: str, lora: bool) -> None:
    rows = arranged_rows(method, 9)
    whole = gradient_of(method, [rows], lora)
    assert max(float(g.norm()) for g in whole.values()) > 1e-3
    # from a teacher it is the small difference of two gradients as large as that from the data, and rounded as they are
    terms = gradient_of("sft", [rows], lora) if method == "distill" else whole
    weights = trained_weights(make_trainer(method=method, lora=lora))
    for split in ([rows[:5], rows[5:]], [[row] for row in rows], [rows[7:], rows[:1], rows[1:7]]):
        for name, gradient in gradient_of(method, split, lora).items():
            allowed = 1e-5 * float(terms[name].norm()) + 1e-9 + rounding(weights[name], whole[name])
            assert float((gradient - whole[name]).norm()) <= allowed, name


@pytest.mark.parametrize("packs", ["even", "uneven"])
def test_two_processes_take_the_same_steps_as_one(packs: str, tmp_path: Path) -> None:
    script, out = ROOT / "tests" / "training" / "two_ranks.py", tmp_path / "out.pt"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(script), packs, str(out)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    saved = torch.load(out)
    trainer = make_trainer(**settings(packs))
    reports = [trainer.step(trainer.source.step(i)).values for i in range(4)]
    for name in ("loss", "grad_norm"):
        assert saved[name] == pytest.approx([values[name] for values in reports], rel=1e-5)
    for name, weights in trained_weights(trainer).items():
        moved = float((weights - saved["weights"][name]).norm())
        assert moved <= 1e-5 * float(weights.norm()) + 1e-8, name


def settings(packs: str) -> dict[str, int]:
    """Even: two micro-batches a rank. Uneven: three a step, and one in an epoch's last step."""
    return (
        {"tokens_per_step": 128, "micro_tokens": 32}
        if packs == "even"
        else {"tokens_per_step": 96, "micro_tokens": 32}
    )


def test_an_all_masked_step_is_refused_with_what_to_look_at() -> None:
    masked = Example((Segment(np.arange(6, dtype=np.int32), np.zeros(6, np.float32)),), row=0)
    with pytest.raises(RunError, match="step 1 has nothing to learn from: none of its 6 tokens is a target"):
        make_trainer().step([collate([masked])])


def test_an_all_masked_micro_batch_beside_others_changes_nothing() -> None:
    rows = list(chat_rows(4).examples)
    masked = Example((Segment(np.arange(6, dtype=np.int32), np.zeros(6, np.float32)),), row=9)
    alone, beside = gradient_of("sft", [rows], True), gradient_of("sft", [[masked], rows], True)
    for name in alone:
        torch.testing.assert_close(alone[name], beside[name])


def broken_trainer(rows_to_break: set[int]) -> tuple[object, list[Batch]]:
    """A trainer whose embedding of token 96 is infinite, and a step in which only some rows hold that token."""
    examples = []
    for row in range(6):
        ids = np.arange(row, row + 8, dtype=np.int32)
        if row in rows_to_break:
            ids[3] = 96
        examples.append(Example((Segment(ids, np.ones(8, np.float32)),), row=row))
    trainer = make_trainer(Rows(examples))
    trainer.policy.model.get_input_embeddings().register_forward_hook(  # pyright: ignore
        lambda module, inputs, output: torch.where((inputs[0] == 96)[..., None], torch.inf, output)
    )
    return trainer, [collate(examples[:4]), collate(examples[4:])]


def test_a_nonfinite_step_names_the_rows_and_is_not_applied() -> None:
    trainer, step = broken_trainer({1, 5})
    before = trained_weights(trainer)  # pyright: ignore
    with pytest.raises(
        RunError, match=r"step 1: loss nan.*It comes from rows\.jsonl:2, rows\.jsonl:6\. This step was not"
    ):
        trainer.step(step)  # pyright: ignore
    after = trained_weights(trainer)  # pyright: ignore
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_nonfinite_weights_are_told_from_nonfinite_rows() -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.parameters[0][0] = torch.nan
    with pytest.raises(RunError, match="The weights themselves are not finite any more"):
        trainer.step(trainer.source.step(0))


def test_learning_lowers_the_loss_and_follows_the_schedule() -> None:
    trainer = make_trainer(chat_rows(6), steps=30, lora=False)
    reports = []
    trainer.hooks.append(lambda _, report: reports.append(report.values))
    trainer.run()
    assert reports[-1]["loss"] < 0.5 * reports[0]["loss"]
    assert [r["lr"] for r in reports] == pytest.approx([1e-2 * trainer.schedule(i) for i in range(30)])


def test_hooks_can_stop_the_run_and_a_signal_on_one_rank_stops_all() -> None:
    trainer = make_trainer()
    trainer.hooks.append(
        lambda t, report: setattr(t.progress, "stopping", "enough") if report.step == 3 else None
    )
    assert trainer.run().step == 3

    class TwoRanks(Cluster):
        def sum(self, values: list[float]) -> list[float]:  # pyright: ignore
            return [value + 1 for value in values] if len(values) == 1 else list(values)

    other = make_trainer(cluster=TwoRanks())
    assert other.run().step == 0 and other.interrupted == "another rank was interrupted"
