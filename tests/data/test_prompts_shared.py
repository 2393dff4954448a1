"""Prompts are shared by the answers of a row where that pays, and how they are laid out changes nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import luthier
from luthier.data.balance import CostModel
from luthier.data.batch import Batch, Example, Segment, collate
from luthier.data.draft import sequences
from luthier.data.prompts import MIN_GAIN, Apart, lay_out, predicted_gain
from luthier.data.sharing import num_logical_tokens, share_prefixes
from luthier.runs.metrics import read_metrics
from method_rows import judged_rows
from tiny_runs import tiny_config
from training_parts import Rows, chat_rows

COST = CostModel(per_pair=0.01)


def row(prompt: int, answers: Sequence[int], number: int = 0) -> Example:
    ids = np.random.default_rng(number).integers(3, 90, prompt + sum(answers)).astype(np.int32)
    parts = np.split(ids, np.cumsum([prompt, *answers])[:-1])
    children = [Segment(part, np.ones(len(part), np.float32), 0) for part in parts[1:]]
    return Example((Segment(parts[0], np.zeros(prompt, np.float32)), *children), number, {"score": 1.0})


def counted(batch: Batch, *, shared: bool) -> float:
    """The cost by its definition: every token once, and every token that it looks at, itself for a half."""
    starts, looked = batch.starts_S1.tolist(), {}
    for number, path in enumerate(batch.paths()):
        tokens = [t for segment in path for t in range(starts[segment], starts[segment + 1])]
        for place, token in enumerate(tokens):
            looked[token if shared else (number, token)] = place + 0.5
    return sum(1 + COST.per_pair * num for num in looked.values())


@pytest.mark.parametrize("reads", ["pair", "ranking"])
def test_the_prediction_counts_tokens_and_what_they_look_at(reads: str) -> None:
    for batch in (
        collate(judged_rows(reads, 5)),
        share_prefixes(collate([row(40, (3, 4)), row(40, (3, 5))])),
    ):
        found = predicted_gain(batch, COST)
        assert found == pytest.approx(counted(batch, shared=False) / counted(batch, shared=True))
    assert predicted_gain(collate([row(30, (5,))]), COST) == pytest.approx(1.0)


def test_long_prompts_are_shared_and_short_ones_are_not() -> None:
    long, short = (Rows([row(prompt, (20, 20), i) for i in range(9)]) for prompt in (60, 2))
    kept = lay_out(long, COST, 256, sharing=True)
    assert kept.dataset is long and kept.sharing and "share its prompt: predicted 1." in kept.note
    laid = lay_out(short, COST, 256, sharing=True)
    assert isinstance(laid.dataset, Apart) and not laid.sharing and "only 1.0" in laid.note
    gains = [predicted_gain(collate(rows.examples), COST) for rows in (long, short)]
    assert gains[0] >= MIN_GAIN > gains[1] > 1


def test_what_hinders_is_told_and_rows_without_several_answers_are_left_alone() -> None:
    rows = Rows([row(60, (20, 20), i) for i in range(3)])
    assert lay_out(rows, COST, 256, sharing=False, hinder="so it is").note.endswith("of its own: so it is")
    chats = chat_rows(5)
    assert lay_out(chats, COST, 64, sharing=True, hinder="so it is").dataset is chats


def test_rows_apart_say_the_same_and_long_ones_stay() -> None:
    rows = Rows([row(10, (5, 6, 7), 0), row(50, (5, 6), 1)])
    apart = Apart(rows, 80)
    assert apart.lengths.tolist() == [48, 61] == [len(apart.example(i)) for i in range(2)]
    assert all(segment.parent < 0 for segment in apart.example(0).segments) and apart.example(
        1
    ) is rows.example(1)
    for (ids, weights), (others, other_weights) in zip(
        sequences(apart.example(0)), sequences(rows.example(0)), strict=True
    ):
        assert np.array_equal(ids, others) and np.array_equal(weights, other_weights)
    first, second = collate([apart.example(0)]), collate([rows.example(0)])
    assert num_logical_tokens(first) == num_logical_tokens(second)
    assert first.columns.keys() == second.columns.keys() and first.target_N.equal(second.target_N)
    assert first.sequence_N.equal(second.sequence_N)


def test_a_run_takes_the_same_steps_either_way_and_says_which(tmp_path: Path) -> None:
    question = "Which of these is it: a house, a stone or a river? "
    rows = [{"prompt": question * 2 + str(i), "chosen": f"{i} it is", "rejected": "no"} for i in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    file, told = str(tmp_path / "pairs.jsonl"), dict[bool, list[str]]()
    losses = {}
    for share in (True, False):
        told[share] = []
        config = tiny_config(
            tmp_path, f"share-{share}", method="dpo", lora={"rank": 4, "dropout": 0.0}, eval={"samples": 0},
            data={"path": file, "eval_path": file, "share_prefixes": share},
            train={"steps": 4, "tokens_per_step": 8192, "tokens_per_micro_batch": 8192},
        )  # fmt: skip
        folder = luthier.train(config, say=told[share].append).folder
        steps = [step for step in read_metrics(folder / "metrics.jsonl") if step["kind"] == "train"]
        losses[share] = [step["loss"] for step in steps]
    assert any("the answers of a row share its prompt: predicted" in line for line in told[True])
    assert any("prompt of its own: data.share_prefixes is false" in line for line in told[False])
    assert losses[True] == pytest.approx(losses[False], rel=1e-3) and losses[True][-1] < losses[True][0]
