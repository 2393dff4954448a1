"""Rows: recorded lengths, the same ids for everybody, and what is learned."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench.contestants.luthier_sft import Documents
from bench.rows import FIRST_ID, LENGTHS, Rows, load_rows, make_rows, recorded
from bench.workloads import WORKLOADS, Size

SIZE = Size(("tiny",), 4)


@pytest.mark.parametrize("name", ["alpaca", "gsm8k", "dpo"])
def test_recorded_lengths_are_lengths_only(name: str) -> None:
    text = (LENGTHS / f"{name}.json").read_text(encoding="utf-8")
    listed = text.split('"lengths"', 1)[1]
    assert not re.search(r"[a-zA-Z]", listed), "no text of the data is kept"
    lengths = recorded(name)
    assert lengths.shape[1] == (3 if name == "dpo" else 2)
    assert len(lengths) >= 300 and (lengths >= 1).all()


def test_recorded_means() -> None:
    """What these data sets are known for; a broken recording would miss it."""
    assert recorded("alpaca").sum(1).mean() == pytest.approx(200, abs=25)
    assert recorded("gsm8k").sum(1).mean() == pytest.approx(215, abs=25)
    pairs = recorded("dpo").mean(0)
    assert pairs[0] == pytest.approx(440, abs=40) and pairs[1:].sum() == pytest.approx(660, abs=40)


@pytest.mark.parametrize("key", list(WORKLOADS))
def test_rows_of_every_workload(key: str) -> None:
    workload = WORKLOADS[key]
    rows = make_rows(workload, SIZE, tokens=96, num_rows=6, vocabulary=512, longest=4096, seed=3)
    again = make_rows(workload, SIZE, tokens=96, num_rows=6, vocabulary=512, longest=4096, seed=3)
    assert len(rows) == 6 and rows.ids.dtype == np.int32
    assert (rows.ids == again.ids).all() and (rows.lengths == again.lengths).all()
    assert rows.ids.min() >= FIRST_ID and rows.ids.max() < 512
    assert rows.lengths.sum() == len(rows.ids)
    if not workload.lengths and workload.kind == "sft":
        assert (rows.tokens == 96).all()


def test_a_row_is_prompt_and_answers_in_place() -> None:
    rows = make_rows(WORKLOADS["D"], SIZE, tokens=0, num_rows=5, vocabulary=512, longest=2000)
    assert (np.concatenate([np.concatenate(rows.row(i)) for i in range(5)]) == rows.ids).all()
    ids, learned = rows.flat(2)
    assert (ids == np.concatenate(rows.row(2))).all()
    assert not learned[: rows.lengths[2, 0]].any() and learned[rows.lengths[2, 0] :].all()


def test_no_row_is_longer_than_wanted() -> None:
    rows = make_rows(WORKLOADS["A"], SIZE, tokens=0, num_rows=2000, vocabulary=512, longest=100)
    assert rows.tokens.max() <= 100 and len(rows) == 2000


def test_group_of_completions() -> None:
    workload = replace(WORKLOADS["E"], group=5)
    rows = make_rows(workload, SIZE, tokens=0, num_rows=200, vocabulary=512, longest=9999)
    assert rows.lengths.shape == (200, 6) and (rows.lengths[:, 0] == workload.prompt).all()
    assert rows.lengths[:, 1:].mean() == pytest.approx(workload.answer, rel=0.05)


def test_logical_tokens_count_a_prompt_once_for_each_answer() -> None:
    rows = Rows(np.zeros(60, np.int32), np.array([[10, 20, 30]]))
    assert rows.tokens.tolist() == [60] and rows.logical.tolist() == [70]
    assert Rows(np.zeros(30, np.int32), np.array([[10, 20]])).logical.tolist() == [30]


def test_rows_survive_the_disk(tmp_path: Path) -> None:
    rows = make_rows(WORKLOADS["B"], SIZE, tokens=0, num_rows=7, vocabulary=512, longest=600)
    rows.save(tmp_path / "rows.npz")
    back = load_rows(tmp_path / "rows.npz")
    assert (back.ids == rows.ids).all() and (back.lengths == rows.lengths).all()


def test_luthier_and_peers_read_the_same() -> None:
    from bench.contestants.hf_common import sft_columns

    rows = make_rows(WORKLOADS["A"], SIZE, tokens=0, num_rows=9, vocabulary=512, longest=400)
    columns, documents = sft_columns(rows), Documents(rows)
    for index in range(9):
        (segment,) = documents.example(index).segments
        assert segment.ids.tolist() == columns["input_ids"][index]
        labels = np.where(segment.weights > 0, segment.ids, -100).tolist()
        assert labels == columns["labels"][index]
