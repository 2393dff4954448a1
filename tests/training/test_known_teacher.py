"""A teacher that is asked once: its likeliest tokens on disk train as those of the live one, and none is believed."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import luthier
from luthier.config.tree import Config
from luthier.data import cache
from luthier.data.batch import collate
from luthier.data.known import WithGiven
from luthier.data.loader import StepSource
from luthier.errors import ConfigError
from luthier.kernels import divergence
from luthier.kernels.divergence import Divergence
from luthier.kernels.softmax_gradient import LogitShape
from luthier.kernels.teacher import TeacherHead, TeacherLogits
from luthier.kernels.top_tokens import as_numbers, from_numbers, top_tokens
from luthier.methods.distill import Distill
from luthier.models.compat import plain_attention
from luthier.models.teacher import GIVEN, KnownTeacher, Teacher
from luthier.models.tripwire import choose_policy
from luthier.parallel.cluster import Cluster
from luthier.runs.metrics import read_metrics
from luthier.training.asked import TeacherTokens
from luthier.training.known_values import KnownValues
from luthier.training.loop import Trainer
from thread_ranks import on_ranks
from tiny_models import VOCAB, tiny_llama
from training.test_teacher_run import distilling
from training_parts import Rows, chat_rows, make_teacher, make_trainer, trained_weights


def asked_of(teacher: Teacher, k: int = 8, temperature: float = 1.0) -> TeacherTokens:
    return TeacherTokens(teacher.policy, k, temperature, VOCAB)


def known_of(
    asked: TeacherTokens,
    rows: Rows,
    folder: Path,
    said: list[str] | None = None,
    cluster: Cluster | None = None,
) -> WithGiven:
    say = (said if said is not None else []).append
    return KnownValues(asked, cluster or Cluster(), say, folder)(rows)


def plain_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """What comes after each token but the last, by transformers' own forward."""
    with plain_attention(model):
        return model(ids).logits[0, :-1].double()


@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (4, 0.7), (11, 2.0)])
def test_the_likeliest_tokens_are_those_of_the_whole_distribution(k: int, temperature: float) -> None:
    torch.manual_seed(0)
    head = TeacherHead(torch.randn(7, 6).double(), torch.randn(13, 6).double(), shape=LogitShape(0.5, 3.0))
    logits = head.shape(head.hidden_ND @ head.weight_VD.T)
    p = (logits[:, :11] / temperature).softmax(-1)
    for teacher in (head, TeacherLogits(logits)):
        found = top_tokens(teacher, k, temperature, vocabulary=11, chunk=3)
        best = p.topk(k)
        assert torch.equal(found.ids_NK, best.indices)
        torch.testing.assert_close(found.logp_NK1[:, :-1].exp(), best.values)
        torch.testing.assert_close(found.logp_NK1.exp().sum(-1), torch.ones(7).double())
        again = from_numbers(as_numbers(found))
        assert torch.equal(again.ids_NK, found.ids_NK) and torch.equal(again.logp_NK1, found.logp_NK1.float())


@pytest.mark.parametrize(
    "settings", [{"alpha": 1.0}, {"alpha": 0.6, "beta": 0.4, "temperature": 1.7}], ids=str
)
def test_the_step_is_that_of_the_coarser_divergence(settings: dict[str, Any], tmp_path: Path) -> None:
    """Written out on the plain models' logits: k tokens and all others as one more outcome."""
    method, k, rows = Distill(**settings), 5, chat_rows(3, longest=12)
    teacher = make_teacher()
    known = known_of(asked_of(teacher, k, method.temperature), rows, tmp_path)
    student = make_trainer(method="distill", options=settings, lora=False)
    student.learner.scorer.teacher = KnownTeacher()
    batch = collate([known.example(i) for i in range(3)])
    assert method.teacher_divergence is not None
    total = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        row = rows.example(i).segments[0]
        ids = torch.tensor(row.ids[None], dtype=torch.int64)
        q, p = (plain_logits(m, ids) for m in (student.policy.model, teacher.policy.model))
        places = np.flatnonzero(row.weights)
        places = places[places > 0] - 1
        ids_K = (p[places] / method.temperature).topk(k).indices
        apart = divergence.reference(p[places], q[places], method.teacher_divergence, ids_K)
        nll = -q[places].log_softmax(-1).gather(1, ids[0, places + 1][:, None])[:, 0]
        total = total + (method.alpha * method.temperature**2 * apart + (1 - method.alpha) * nll).sum()
    trained = [p for p in student.policy.parameters() if p.requires_grad][-3:]
    true = torch.autograd.grad(total, trained)
    for loss in (
        student.learner.loss(batch)[0],
        method.loss(student.learner.scorer(batch), batch)[0],
    ):
        assert loss.item() == pytest.approx(total.item(), rel=1e-5)
        for gradient, expected in zip(torch.autograd.grad(loss, trained), true, strict=True):
            torch.testing.assert_close(gradient, expected.float(), rtol=1e-3, atol=1e-5)


def test_with_all_tokens_it_trains_as_the_live_teacher(tmp_path: Path) -> None:
    def losses(trainer: Trainer) -> list[float]:
        return [trainer.step(trainer.source.step(i)).values["loss"] for i in range(5)]

    live, told = (make_trainer(method="distill", options={"beta": 0.5}) for _ in range(2))
    assert isinstance(told.source, StepSource)
    told.source.dataset = known_of(asked_of(make_teacher(), VOCAB), chat_rows(), tmp_path)
    told.learner.scorer.teacher = KnownTeacher()
    assert losses(told) == pytest.approx(losses(live), rel=1e-4)
    for one, other in zip(trained_weights(live).values(), trained_weights(told).values(), strict=True):
        assert float((one - other).norm()) <= 1e-3 * float(one.norm()) + 1e-6


def test_what_is_kept_is_checked_and_taken_by_the_same_question_only(tmp_path: Path) -> None:
    rows, said = chat_rows(30), list[str]()
    first = known_of(asked_of(make_teacher()), rows, tmp_path, said)
    assert "the teacher was asked about 30 rows" in said[-1] and first.values.shape[1] == 17
    again = known_of(asked_of(make_teacher()), rows, tmp_path, said)
    assert "the teacher of 30 rows is taken from disk" in said[-1]
    assert np.array_equal(first.values, again.values)
    other = Teacher(choose_policy(tiny_llama(seed=4, hidden_size=48)).policy)
    for asked in (asked_of(make_teacher(), 9), asked_of(make_teacher(), 8, 1.5), asked_of(other)):
        known_of(asked, rows, tmp_path, said)
        assert "was asked about" in said[-1]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("what", ["likelihoods", "tokens", "others"])
def test_numbers_that_do_not_agree_are_not_believed(what: str, tmp_path: Path) -> None:
    rows, said = chat_rows(6), list[str]()
    truth = np.array(known_of(asked_of(make_teacher()), rows, tmp_path).values)
    (entry,) = tmp_path.iterdir()
    wrong = np.array(truth)
    if what == "tokens":
        wrong[:, 0] = (wrong[:, 0] + 1) % VOCAB
    else:
        wrong[:, 8 if what == "likelihoods" else -1] += 0.1
    import shutil

    shutil.rmtree(entry)
    with cache.new_entry(entry, {}) as made:
        np.save(made / "values.npy", wrong)
    found = known_of(asked_of(make_teacher()), rows, tmp_path, said)
    assert np.array_equal(found.values, truth) and any("not believed" in line for line in said)


def test_near_ties_may_change_places(tmp_path: Path) -> None:
    asked = asked_of(make_teacher(), 3)
    live = np.array([[5, 9, 2, -1.0, -1.2, -2.0, -0.9]], np.float32)
    swapped = np.array([[5, 2, 7, -1.0, -2.0, -2.0001, -0.9]], np.float32)
    assert asked.off(live, live) == 0 and asked.off(live[:, [1, 0, 2, 4, 3, 5, 6]], live) == 0
    assert asked.off(np.array([[5, 9, 7, -1.0, -1.2, -2.0001, -0.9]], np.float32), live) < 1e-4
    assert asked.off(swapped, live) < 1e-4 < asked.off(live, swapped)


def test_ranks_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.training.known_values.PACK_TOKENS", 32)
    monkeypatch.setattr("luthier.training.known_values.LEAST_PACKS", 1)
    teachers, rows = [make_teacher() for _ in range(3)], chat_rows(20)

    def work(cluster: Cluster) -> Any:
        said: list[str] = []
        asked = asked_of(teachers[cluster.rank])
        twice = [known_of(asked, rows, tmp_path / "seen", said, cluster) for _ in range(2)]
        apart = known_of(asked, rows, tmp_path / f"disk{cluster.rank}", said, cluster)
        return [np.array(one.values) for one in (*twice, apart)], said

    alone = known_of(asked_of(make_teacher()), rows, tmp_path / "alone")
    for found, said in on_ranks(3, work):
        assert all(np.array_equal(one, alone.values) for one in found)
        assert any("taken from disk" in line for line in said)


def losses_of(run: Path, kind: str = "train") -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == kind]


def test_a_run_asks_its_teacher_once_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.errors import Interrupted

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    section = {"name": str(tmp_path / "teacher"), "top_k": 16}

    def config(name: str, **changes: Any) -> Config:
        distilling(tmp_path, name)  # makes the models
        return distilling(tmp_path, name, teacher=section, **changes)

    told: list[str] = []
    straight = luthier.train(config("straight"), say=told.append).folder
    assert sum("the teacher was asked about" in line for line in told) == 2  # rows, and held-out rows
    assert any("asked before training for 16 tokens of each prediction (132 bytes)" in line for line in told)
    held_out = losses_of(straight, "eval")
    assert held_out[-1] < held_out[0]

    original = Trainer.step

    def stopped(self: Trainer, batches: Any) -> Any:
        assert all(GIVEN in batch.given for batch in batches) and isinstance(
            self.learner.scorer.teacher, KnownTeacher
        )
        report = original(self, batches)
        if report.step == 5:
            self.interrupt("asked to")
        return report

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        with pytest.raises(Interrupted):
            luthier.train(config("stopped"), say=told.append)
    told.clear()
    resumed = luthier.train(config("stopped"), resume=True, say=told.append).folder
    assert sum("taken from disk" in line for line in told) == 2
    assert losses_of(resumed) == losses_of(straight) and losses_of(resumed, "eval") == held_out
    with pytest.raises(
        ConfigError, match=r"rows of a stream are new in each step; set data.streaming: false"
    ):
        luthier.train(config("streamed", data={"streaming": True, "workers": 0}), say=told.append)


def test_the_divergence_grows_with_k_to_the_whole(tmp_path: Path) -> None:
    rows, student = chat_rows(4), choose_policy(tiny_llama()).policy
    values = []
    for k in (1, 8, 40, VOCAB):
        known = known_of(asked_of(make_teacher(), k), rows, tmp_path / str(k))
        batch = collate([known.example(i) for i in range(4)])
        values.append(student.divergence(batch, KnownTeacher()(batch), Divergence(0.3))[1].detach())
    full = student.divergence(batch, make_teacher()(batch), Divergence(0.3))[1].detach()
    assert all(bool((a <= b + 1e-5).all()) for a, b in pairwise(values))
    torch.testing.assert_close(values[-1], full, rtol=1e-4, atol=1e-5)
