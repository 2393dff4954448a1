"""Steps of own answers: which prompts, which tokens, when; alike for any split, and again after a resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import luthier
from luthier.config.tree import Config
from luthier.data.batch import Batch, Example, Segment, collate
from luthier.data.loader import StepSource
from luthier.data.sharing import share_prefixes
from luthier.errors import ConfigError
from luthier.methods.base import Sampling
from luthier.models.teacher import Teacher
from luthier.models.tripwire import choose_policy
from luthier.rollout.native import NativeGenerator
from luthier.runs.metrics import read_metrics
from luthier.training.build import build_method
from luthier.training.loop import Trainer
from luthier.training.own_answers import OwnAnswers, prompts_of
from resuming import losses, resumes_exactly
from tiny_models import tiny_llama
from training.test_teacher_run import distilling
from training_parts import Rows, chat_rows, make_trainer

MICRO = 48


def answering(sampling: Sampling, rows: Rows | None = None, seed: int = 0, **options: Any) -> OwnAnswers:
    source = StepSource(rows or chat_rows(12), tokens_per_step=96, micro_tokens=MICRO, **options)
    generator = NativeGenerator(choose_policy(tiny_llama()).policy.model, eos_token_ids=[2])
    return OwnAnswers(generator, sampling, source, seed)


def written(batches: list[Batch]) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
    """Prompt and answer by row and sample, read back from the batches."""
    found: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for batch in batches:
        starts = batch.starts_S1.tolist()
        assert batch.starts_S1[-1] <= MICRO and bool((batch.weight_N == 1).all())
        for number, path in enumerate(batch.paths()):
            row = int(batch.columns["row"][number])
            ids = [int(i) for s in path for i in batch.tokens_T[starts[s] : starts[s + 1]]]
            answer = batch.target_N[batch.sequence_N == number].tolist()
            sample = sum(key[0] == row for key in found)
            found[row, sample] = ids[: len(ids) - len(answer)], answer
    return found


def test_each_row_asks_for_the_last_thing_it_teaches() -> None:
    ids = np.arange(20, 32, dtype=np.int32)
    weights = np.array([0, 0, 1, 1, 0, 0, 0, 0.5, 0.5, 0.5, 0, 0], np.float32)
    text = np.ones(5, np.float32)
    rows = [
        Example((Segment(ids, weights),), row=0, columns={"bytes": 7.0, "label": 2.0}),
        Example((Segment(ids[:5], text),), row=1),
        Example((Segment(ids[:5], 0 * text),), row=2),
        Example((Segment(ids[:4], 0 * ids[:4].astype(np.float32)), Segment(ids[4:], weights[:8], 0)), row=3),
    ]
    for batch in (collate(rows), share_prefixes(collate([rows[0], *rows]))):
        found = {p.row: p for p in prompts_of(batch)}
        assert found.keys() == {0, 1, 3}
        assert found[0].ids.tolist() == ids[:7].tolist() and found[0].columns["label"] == 2.0
        assert "bytes" not in found[0].columns
        assert found[1].ids.tolist() == [20] and found[3].ids.tolist() == ids[:11].tolist()


def test_the_answers_are_those_of_the_generator_whatever_the_split() -> None:
    rows, sampling = chat_rows(10), Sampling(temperature=0.8, max_new_tokens=6, num_samples=2)
    examples = [rows.example(i) for i in range(10)]
    whole = answering(sampling)(3, [collate(examples)])
    found = written(whole)
    for row in range(10):
        first = np.flatnonzero(examples[row].segments[0].weights)[0]
        prompt = examples[row].segments[0].ids[: max(first, 1)].tolist()
        for sample in range(2):
            assert found[row, sample][0] == prompt and 1 <= len(found[row, sample][1]) <= 6
    apart = answering(sampling)
    again: dict[Any, Any] = {}
    for part in (examples[7:], examples[2:7], examples[:2]):
        again |= written(apart(3, [collate(part)]))
    assert again == found
    assert written(answering(sampling)(4, [collate(examples)])) != found
    assert written(answering(sampling, seed=1)(3, [collate(examples)])) != found
    assert answering(sampling)(3, []) == []


def test_a_long_prompt_gets_the_room_that_a_micro_batch_has() -> None:
    ids = np.arange(3, 3 + MICRO - 1, dtype=np.int32)
    weights = np.zeros(len(ids), np.float32)
    weights[-2:] = 1
    row = Example((Segment(ids, weights),), row=0)
    ((prompt, answer),) = written(answering(Sampling(max_new_tokens=30))(0, [collate([row])])).values()
    assert len(prompt) == MICRO - 3 and 1 <= len(answer) <= 3


def test_the_share_of_such_steps_is_the_one_asked_for() -> None:
    due = [answering(Sampling(0.3)).due(step) for step in range(400)]
    assert 0.2 < np.mean(due) < 0.4 and due == [answering(Sampling(0.3)).due(step) for step in range(400)]
    assert all(answering(Sampling(1.0)).due(step) for step in range(50))
    assert not any(answering(Sampling(0.0)).due(step) for step in range(50))
    assert due != [answering(Sampling(0.3), seed=1).due(step) for step in range(400)]


def test_with_itself_as_the_teacher_the_first_step_is_exactly_zero() -> None:
    trainer = make_trainer(method="gkd", options={"lmbda": 1.0}, model=tiny_llama())
    trainer.learner.scorer.teacher = Teacher(choose_policy(tiny_llama()).policy)
    assert losses(trainer, range(1)) == [0.0]


def test_a_resumed_run_writes_what_the_uninterrupted_one_wrote(tmp_path: Path) -> None:
    def made() -> Trainer:
        return make_trainer(method="gkd", options={"lmbda": 0.7, "max_new_tokens": 8}, dropout=0.1, steps=6)

    straight, _ = resumes_exactly(made, tmp_path / "run", 6)
    due = [straight.learner.before_step.due(step) for step in range(6)]  # type: ignore[attr-defined]
    assert any(due[3:]) and not all(due)


def test_own_answers_come_nearer_to_the_teacher() -> None:
    options = {"lmbda": 1.0, "max_new_tokens": 8, "beta": 0.5}
    trainer = make_trainer(method="gkd", options=options, steps=16, lora=False, lr=3e-3)
    learned = losses(trainer, range(16))
    assert np.mean(learned[-4:]) < 0.8 * np.mean(learned[:4])
    still = make_trainer(method="gkd", options=options, steps=16, lora=False, lr=0.0)
    flat = losses(still, range(16))
    assert np.mean(flat[-4:]) > 0.9 * np.mean(flat[:4])


def test_a_whole_run_tells_what_it_does_and_evaluates_on_the_data(tmp_path: Path) -> None:
    told: list[str] = []
    method = {"name": "gkd", "lmbda": 1.0, "max_new_tokens": 12}
    config = distilling(tmp_path, "own", method=method)
    run = luthier.train(config, say=told.append).folder
    assert any(
        "in each step the model answers the prompts itself first, in at most 12" in line for line in told
    )
    held_out = [row["loss"] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "eval"]
    assert held_out[-1] < held_out[0]


def test_answers_yet_to_be_written_cannot_be_known_beforehand() -> None:
    base = {"model": "x/y", "data": "a.jsonl", "teacher": {"name": "x/z", "top_k": 8}}
    with pytest.raises(ConfigError, match=r"has yet to write; leave out teacher.top_k.*lmbda: 0"):
        build_method(Config.model_validate({**base, "method": "gkd"}))
    build_method(Config.model_validate({**base, "method": {"name": "gkd", "lmbda": 0}}))
