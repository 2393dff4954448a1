"""Runs that begin at another run's checkpoint, and runs over so many tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import read_metrics, series
from tiny_runs import tiny_config, write_chats

WSD = {"name": "wsd", "warmup_steps": 2, "decay_steps": 3}
STREAM = {"streaming": True, "window_rows": 9, "workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("begin")


def config_of(folder: Path, name: str, **changes: Any) -> Config:
    plain = {"eval": {"every": None, "samples": 0}, "schedule": WSD, "checkpoint": {"every": None}}
    return tiny_config(folder, name, **{**plain, **changes})


def train(config: Config) -> tuple[Path, list[str]]:
    said: list[str] = []
    return luthier.train(config, say=said.append).folder, said


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    found = [*run.glob("adapter/adapter_model.safetensors"), *run.glob("model/model.safetensors")]
    return load_file(found[0])


def rates(run: Path) -> list[float | None]:
    return [rate for _, rate in series(read_metrics(run / "metrics.jsonl"), "train", "lr")]


@pytest.mark.parametrize("data", [{}, STREAM], ids=["at once", "stream"])
@pytest.mark.parametrize("lora", [{"rank": 4, "dropout": 0.1}, ...], ids=["lora", "all weights"])
def test_decaying_from_a_checkpoint_is_the_run_that_went_through(folder: Path, data: Any, lora: Any) -> None:
    name = f"{len(data)}-{lora is ...}"
    about = {"data": data, "lora": lora}
    whole, _ = train(config_of(folder, f"whole-{name}", train={"steps": 10}, **about))
    trunk, _ = train(
        config_of(
            folder, f"trunk-{name}", train={"steps": 7}, **about | {"schedule": WSD | {"name": "constant"}}
        )
    )
    start = {"every": None, "start": str(trunk)}
    decayed, said = train(
        config_of(folder, f"decayed-{name}", train={"steps": 10}, checkpoint=start, **about)
    )
    assert any("starting after step 7 of 10" in line and "rows go on" in line for line in said)
    one, two = weights_of(whole), weights_of(decayed)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert rates(trunk) == rates(whole)[:7] and rates(decayed) == rates(whole)[7:]
    assert rates(whole)[6] == rates(whole)[7] == 1e-2 > rates(whole)[8]  # type: ignore[operator]
    assert RunFolder(trunk).saved_steps() == [7]  # the trunk is as it was


def test_other_rows_begin_with_the_first(folder: Path) -> None:
    trunk, _ = train(config_of(folder, "before", train={"steps": 4}, schedule={}))
    other = str(write_chats(folder / "other.jsonl", 40, seed=9))
    for name, data in {"all": {}, "streamed": STREAM}.items():
        config = config_of(
            folder,
            f"elsewhere-{name}",
            data={**data, "path": other},
            train={"steps": 7, "tokens_per_step": 256},
            checkpoint={"every": None, "start": str(RunFolder(trunk).checkpoint(4))},
        )
        run, said = train(config)
        assert any("other rows, from the first" in line for line in said)
        assert [row["step"] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"] == [
            5,
            6,
            7,
        ]


def test_a_start_that_cannot_be_is_told_before_any_work(folder: Path) -> None:
    missing = config_of(folder, "nowhere", checkpoint={"start": str(folder)})
    with pytest.raises(ConfigError, match="where there is no checkpoint"):
        train(missing)
    trunk, _ = train(config_of(folder, "short", train={"steps": 4}, schedule={}))
    with pytest.raises(ConfigError, match="same section lora"):
        train(config_of(folder, "full", lora=..., checkpoint={"start": str(trunk)}))
    with pytest.raises(ConfigError, match=r"raise train\.steps"):
        train(config_of(folder, "over", train={"steps": 4}, checkpoint={"start": str(trunk)}, schedule={}))
    other = {"path": str(write_chats(folder / "third.jsonl", 30, seed=8))}
    with pytest.raises(ConfigError, match=r"give train\.steps or train\.max_tokens"):
        train(config_of(folder, "unknown", data=other, checkpoint={"start": str(trunk)}))


@pytest.mark.parametrize("data", [{}, STREAM], ids=["at once", "stream"])
def test_a_run_over_so_many_tokens(folder: Path, data: Any) -> None:
    name = f"tokens-{len(data)}"
    config = config_of(folder, name, data=data, train={"max_tokens": 4000}, schedule={"name": "linear"})
    run, _ = train(config)
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
    seen = [row["num_tokens"] for row in rows]
    assert seen[-1] >= 4000 > seen[-2] and seen[-1] == sum(row["tokens"] for row in rows)
    peak, steps = 1e-2, -(-4000 // 512)  # no warm-up step in so few
    for before, row in zip([0, *seen], rows, strict=False):  # a function of the tokens, not of the steps
        assert row["lr"] == pytest.approx(peak * (1 - before / 4000))
    assert len(rows) > steps  # steps are not quite full
    assert RunFolder(run).status().num_steps == len(rows)


def test_tokens_are_counted_on_from_the_start(folder: Path) -> None:
    wsd = {"name": "wsd", "warmup_steps": 1, "decay_ratio": 0.4}
    whole, _ = train(config_of(folder, "whole-tokens", train={"max_tokens": 4000}, schedule=wsd))
    trunk, _ = train(
        config_of(
            folder,
            "trunk-tokens",
            train={"max_tokens": 2000},
            schedule=wsd | {"name": "constant", "decay_ratio": None},
        )
    )
    start = {"every": None, "start": str(trunk)}
    run, _ = train(
        config_of(folder, "rest-tokens", train={"max_tokens": 4000}, schedule=wsd, checkpoint=start)
    )
    assert rates(trunk) + rates(run) == rates(whole)
    one, two = weights_of(whole), weights_of(run)
    assert all(torch.equal(one[key], two[key]) for key in one)
