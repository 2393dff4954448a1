"""Runs that begin at another run's checkpoint, and runs over so many tokens."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.config.tree import Config
from luthier.errors import ConfigError, Interrupted, RunError
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import read_metrics, series
from luthier.training.loop import Trainer
from tiny_runs import tiny_config, write_chats

WSD = {"name": "wsd", "warmup_steps": 2, "decay_steps": 3}
STABLE = {"name": "constant", "warmup_steps": 2}
UNHEARD: dict[str, Any] = {"eval_path": None, "share_prefixes": False, "max_drop_fraction": 0.5}
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


def stopped_after(steps: int, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains until so many steps were made, then interrupts."""

    def run(trainer: Trainer) -> None:
        last = trainer.progress.step + steps
        trainer.hooks.append(lambda one, _: one.interrupt("test") if one.progress.step == last else None)
        whole_run(trainer)

    whole_run = Trainer.run
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", run)
        with pytest.raises(Interrupted):
            train(config)


def began_on(run: Path, day: str) -> None:
    """Makes a run one of another day."""
    config = luthier.check(run / "config.yaml")
    text = (run / "config.yaml").read_text()
    assert config.data.date is not None and text.count(config.data.date) == 1
    (run / "config.yaml").write_text(text.replace(config.data.date, day))


def rates(run: Path) -> list[float | None]:
    return [rate for _, rate in series(read_metrics(run / "metrics.jsonl"), "train", "lr")]


@pytest.mark.parametrize("data", [{}, STREAM], ids=["at once", "stream"])
@pytest.mark.parametrize("lora", [{"rank": 4, "dropout": 0.1}, ...], ids=["lora", "all weights"])
def test_decaying_from_a_checkpoint_is_the_run_that_went_through(folder: Path, data: Any, lora: Any) -> None:
    name = f"{len(data)}-{lora is ...}"
    about = {"data": data, "lora": lora}
    whole, _ = train(config_of(folder, f"whole-{name}", train={"steps": 10}, **about))
    trunk, _ = train(config_of(folder, f"trunk-{name}", train={"steps": 7}, **about | {"schedule": STABLE}))
    began_on(trunk, "2020-01-31")
    start = {"every": None, "start": str(trunk)}
    decayed, said = train(
        config_of(
            folder,
            f"decayed-{name}",
            train={"steps": 10},
            checkpoint=start,
            **about | {"data": data | UNHEARD},
        )
    )
    assert any("starting after step 7 of 10" in line and "rows go on" in line for line in said)
    one, two = weights_of(whole), weights_of(decayed)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert rates(trunk) == rates(whole)[:7] and rates(decayed) == rates(whole)[7:]
    assert rates(whole)[6] == rates(whole)[7] == 1e-2 > rates(whole)[8]  # type: ignore[operator]
    assert RunFolder(trunk).saved_steps() == [7]  # the trunk is as it was
    assert luthier.check(decayed / "config.yaml").data.date == "2020-01-31"


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


def test_a_branch_outlives_its_trunk_and_begins_where_it_began(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, _ = train(config_of(folder, "felled", train={"steps": 4}, schedule=STABLE))
    start = {"every": 2, "start": str(trunk)}
    config = config_of(folder, "outlives", train={"steps": 8}, schedule=STABLE, checkpoint=start)
    stopped_after(2, config, monkeypatch)
    whole, _ = train(config_of(folder, "undisturbed", train={"steps": 8}, schedule=STABLE, checkpoint=start))
    early = config_of(folder, "early", train={"steps": 8}, schedule=STABLE, checkpoint={"start": str(trunk)})
    stopped_after(1, early, monkeypatch)
    shutil.rmtree(folder / "runs" / "early" / "checkpoints", ignore_errors=True)
    shutil.copytree(RunFolder(trunk).checkpoint(4), RunFolder(trunk).checkpoint(9))  # the trunk goes on
    late = luthier.train(early, resume=True, say=print).folder
    shutil.rmtree(trunk)
    resumed = luthier.train(config, resume=True, say=print).folder
    one = weights_of(whole)
    for two in (weights_of(resumed), weights_of(late)):
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_weights_of_another_model_are_told(folder: Path) -> None:
    about: dict[str, Any] = {"lora": ..., "train": {"steps": 2}, "schedule": {}}
    trunk, _ = train(config_of(folder, "own-words", **about))
    about |= {"train": {"steps": 4}, "checkpoint": {"every": None, "start": str(trunk)}}
    with pytest.raises(
        RunError, match=r"\.weight is \(\d+, 32\) there, \(\d+, 32\) here\. .* same model\.name"
    ):
        train(
            config_of(
                folder, "more-words", model={"name": str(folder / "model"), "new_tokens": ["<x>"]}, **about
            )
        )
    pairs = folder / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 8)
    reward = {"method": "reward", "data": {"path": str(pairs), "eval_path": None}}
    with pytest.raises(RunError, match=r"score\.weight is only here.*kind of head"):
        train(config_of(folder, "other-head", **about | reward))


def test_a_decay_longer_than_the_epochs_is_told(folder: Path) -> None:
    config = config_of(folder, "too-long", schedule={"name": "wsd", "warmup_steps": 2, "decay_steps": 500})
    with pytest.raises(
        ConfigError, match=r"decay_steps is 500, after 2 of warm-up, but the run has only \d+ steps"
    ):
        train(config)


def test_no_reference_from_before_the_other_runs_training(folder: Path) -> None:
    trunk, _ = train(config_of(folder, "taught", train={"steps": 2}, schedule={}))
    about: dict[str, Any] = {"method": "dpo", "checkpoint": {"start": str(trunk)}, "schedule": {}}
    with pytest.raises(ConfigError, match=r"before that run's training.*model: .*merged.* --to merged"):
        train(config_of(folder, "preferred", **about))
    assert not (folder / "runs" / "preferred").exists()


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
            schedule={"name": "constant", "warmup_steps": 1},
        )
    )
    start = {"every": None, "start": str(trunk)}
    run, _ = train(
        config_of(folder, "rest-tokens", train={"max_tokens": 4000}, schedule=wsd, checkpoint=start)
    )
    assert rates(trunk) + rates(run) == rates(whole)
    one, two = weights_of(whole), weights_of(run)
    assert all(torch.equal(one[key], two[key]) for key in one)
