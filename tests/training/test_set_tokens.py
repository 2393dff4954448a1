"""Where several data sets are mixed, each step tells how many tokens each of them gave."""

from pathlib import Path

import pytest

from luthier.config.data_section import SetSection
from luthier.data.batch import collate
from luthier.data.sets import of_set, set_names, tokens_of_sets
from luthier.data.sharing import num_logical_tokens, share_prefixes
from luthier.runs.metrics import read_metrics
from luthier.training.run import run
from method_rows import judged_rows
from tiny_runs import save_tiny_model, tiny_config, write_chats


@pytest.mark.parametrize("streaming", [False, True])
def test_the_tokens_of_the_sets_are_those_of_the_step(tmp_path: Path, streaming: bool) -> None:
    save_tiny_model(tmp_path / "model")
    chats = [write_chats(tmp_path / name, 16, seed) for seed, name in enumerate(["a.jsonl", "b.jsonl"])]
    write_chats(tmp_path / "test.jsonl", 4, seed=9)
    data = {"path": [str(path) for path in chats], "cache": False, "streaming": streaming}
    folder = run(tiny_config(tmp_path, data=data, train={"epochs": 1, "tokens_per_step": 256})).folder
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]
    for row in rows:
        assert row["tokens/a"] + row["tokens/b"] == row["tokens"]
    assert all(sum(row[f"tokens/{name}"] for row in rows) > 0 for name in "ab")


def test_shared_beginnings_and_padding_count_as_rows_do() -> None:
    rows = [of_set(row, number % 2) for number, row in enumerate(judged_rows("pair", 6))]
    whole = collate(rows)
    counts = tokens_of_sets([whole], 2)
    assert sum(counts) == num_logical_tokens(whole) and min(counts) > 0
    assert (
        tokens_of_sets([share_prefixes(collate(rows[:3])), collate(rows[3:]).padded(200, 99, 60)], 2)
        == counts
    )
    assert tokens_of_sets([collate(judged_rows("pair", 2))], 2) == [0.0, 0.0]


def test_sets_have_names_of_their_own(tmp_path: Path) -> None:
    paths = ["x/chats.jsonl", "y/chats.jsonl", "info.json#alpaca", "folder/"]
    assert set_names([SetSection(path=path) for path in paths]) == ("chats", "chats-2", "alpaca", "folder")
