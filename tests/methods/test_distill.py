"""Distillation: its loss by hand, its limits, layouts that agree, teachers that cannot teach, and a run with one."""

import json
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from luthier.cli.check import describe
from luthier.config.tree import Config
from luthier.data.batch import Batch, collate
from luthier.errors import ConfigError
from luthier.evaluate.scoring import Scorer
from luthier.kernels import divergence
from luthier.kernels.divergence import Divergence
from luthier.methods.base import Scores
from luthier.methods.distill import Distill
from luthier.methods.gkd import Gkd
from luthier.models.policy import Layout, Policy
from luthier.models.teacher import Teacher
from luthier.models.tripwire import choose_policy
from luthier.parallel.cluster import Cluster
from luthier.training.build import build_method
from method_rows import judged_rows
from tiny_models import tiny_llama
from training_parts import chat_rows, make_trainer

PEERS = Path(__file__).resolve().parents[2] / "bench" / ".venv-peers" / "bin" / "python"
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"alpha": 1.0, "beta": 1.0},
    {"alpha": 0.3, "beta": 0.6, "temperature": 2.0},
    {"alpha": 0.0},
)


def batch_of(num_rows: int = 4) -> Batch:
    rows = chat_rows(num_rows, longest=12).examples
    rows[1].segments[0].weights[-2:] *= 0.5
    return collate(rows)


def logits_of(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The plain model's logits of every prediction of rows of one segment."""
    starts, found = batch.starts_S1.tolist(), []
    for start, end in pairwise(starts):
        found.append(model(batch.tokens_T[None, start:end]).logits[0])
    return torch.cat(found)[batch.source_N]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_loss_and_its_gradient_are_those_of_the_formula_on_plain_logits(settings: dict[str, Any]) -> None:
    student, larger, batch = tiny_llama(), tiny_llama(seed=3, hidden_size=48), batch_of()
    method = Distill(**settings)
    trained = [p for n, p in student.named_parameters() if "layers.0.mlp" in n or "lm_head" in n]

    q, p = (logits_of(model, batch) for model in (student, larger))
    measured = divergence.reference(p.detach(), q, Divergence(method.beta, method.temperature))
    nll = -q.log_softmax(-1).gather(1, batch.target_N[:, None])[:, 0]
    each = method.alpha * method.temperature**2 * measured + (1 - method.alpha) * nll
    truth = (batch.weight_N * each).sum()
    true_gradients = torch.autograd.grad(truth, trained)

    scorer = Scorer(
        choose_policy(student).policy, method, None, Cluster(), Teacher(choose_policy(larger).policy)
    )
    general, metrics = method.loss(scorer(batch), batch)
    linear, _ = scorer.linear(batch, method.coefficients(batch))
    assert float(metrics["divergence"].detach()) == pytest.approx(
        float((batch.weight_N * measured.detach()).sum()), rel=1e-4
    )
    for loss in (general, linear):
        assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
        for gradient, true in zip(torch.autograd.grad(loss, trained), true_gradients, strict=True):
            torch.testing.assert_close(gradient, true, rtol=1e-4, atol=1e-6 * float(true.norm()))


def test_the_first_step_with_itself_as_the_teacher_is_exactly_zero_from_the_teacher() -> None:
    policy = choose_policy(tiny_llama()).policy
    twin = Teacher(choose_policy(tiny_llama()).policy)
    method, batch = Distill(alpha=1.0), batch_of()
    loss, _ = Scorer(policy, method, None, Cluster(), twin).linear(batch, method.coefficients(batch))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert max(float(p.grad.abs().max()) for p in policy.parameters() if p.grad is not None) < 1e-5


@pytest.mark.parametrize("layout", ["packed", "rows", "plain"])
def test_every_layout_of_student_and_teacher_gives_the_same(layout: Layout) -> None:
    batch, measure = collate(judged_rows("pair", 3)), Divergence(0.5, 1.5)
    larger = tiny_llama(seed=3, hidden_size=48)
    truth = None
    for student_layout, teacher_layout in (("packed", "packed"), (layout, "packed"), ("packed", layout)):
        teacher = Teacher(Policy(larger, teacher_layout))  # type: ignore[arg-type]
        policy = Policy(tiny_llama(), student_layout)  # type: ignore[arg-type]
        found = torch.stack(policy.divergence(batch, teacher(batch), measure))
        truth = found.detach() if truth is None else truth
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


def test_only_the_student_learns_and_it_comes_nearer() -> None:
    trainer = make_trainer(method="distill", options={"alpha": 1.0}, steps=12, lora=False, lr=3e-3)
    teacher = trainer.learner.scorer.teacher
    assert teacher is not None
    before = [p.clone() for p in teacher.policy.parameters()]
    losses = [trainer.step(trainer.source.step(i)).values["divergence"] for i in range(12)]
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(p, old) for p, old in zip(teacher.policy.parameters(), before, strict=True))
    assert all(p.grad is None for p in teacher.policy.parameters())


def test_a_method_and_its_teacher_belong_together() -> None:
    base = {"model": "x/y", "data": "a.jsonl"}
    with pytest.raises(
        ConfigError, match="distill learns from a teacher, and the config names none; add teacher"
    ):
        build_method(Config.model_validate({**base, "method": "distill"}))
    with pytest.raises(
        ConfigError, match="teacher is x/z, but method sft learns from no teacher; remove teacher"
    ):
        build_method(Config.model_validate({**base, "teacher": "x/z"}))
    build_method(Config.model_validate({**base, "method": "distill", "teacher": "x/z"}))


TRL = """
import json, sys, torch
from trl.experimental.gkd.gkd_trainer import GKDTrainer
answers = []
for case in json.load(sys.stdin):
    student, teacher = (torch.tensor(case[name]) for name in ("student", "teacher"))
    student.requires_grad_()
    loss = GKDTrainer.generalized_jsd_loss(
        student, teacher, torch.tensor(case["labels"]), case["beta"], case["temperature"]
    )
    loss.backward()
    answers.append({"loss": loss.item(), "gradient": student.grad.tolist()})
json.dump(answers, sys.stdout)
"""


@pytest.mark.skipif(not PEERS.exists(), reason="no peers' environment (bench/peers.txt)")
def test_values_and_gradients_are_trls() -> None:
    """TRL's loss is the sum over the tokens by their number, without T²."""
    draw = torch.Generator().manual_seed(2)
    student, teacher = 2 * torch.randn(2, 2, 5, 13, generator=draw)
    labels = torch.tensor([[-100, 3, 4, 5, -100], [1, 2, -100, 3, 4]])
    measures = [(beta, temperature) for beta in (0.0, 0.1, 0.5, 1.0) for temperature in (1.0, 0.9, 2.0)]
    tables = {"student": student.tolist(), "teacher": teacher.tolist(), "labels": labels.tolist()}
    asked = [{**tables, "beta": beta, "temperature": temperature} for beta, temperature in measures]
    done = subprocess.run(
        [str(PEERS), "-c", TRL], input=json.dumps(asked), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    inside = labels != -100
    for (beta, temperature), theirs in zip(measures, json.loads(done.stdout), strict=True):
        mine = student.clone().requires_grad_()
        values = divergence.reference(teacher[inside], mine[inside], Divergence(beta, temperature))
        loss = values.sum() / len(values)
        loss.backward()
        assert loss.item() == pytest.approx(theirs["loss"], rel=1e-5, abs=1e-7)
        if temperature == 1:  # as `gkd` takes it, over a step that has as many predictions
            method, batch = Gkd(beta=beta), collate(chat_rows(1, longest=5).examples * len(values))
            batch = replace(batch, weight_N=torch.ones(len(values)))
            total, _ = method.loss(Scores(values.detach(), divergence_N=values.detach()), batch)
            assert float(total) / method.count(batch) == pytest.approx(theirs["loss"], rel=1e-5, abs=1e-7)
        torch.testing.assert_close(mine.grad, torch.tensor(theirs["gradient"]), rtol=1e-4, atol=1e-7)


def test_check_says_that_the_teacher_is_asked_once() -> None:
    base = {"model": "x/y", "data": "a.jsonl", "method": "distill", "teacher": {"name": "x/z", "top_k": 8}}
    shown = dict(describe(Config.model_validate(base)))
    assert shown["teacher"] == "x/z (dtype auto, asked once for its 8 likeliest tokens)"
