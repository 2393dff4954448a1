"""Runs with adapters of every kind: they learn, resume bit for bit, go on elsewhere, and say what runs how."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.config.lora_section import known_inits
from luthier.config.tree import Config
from luthier.errors import ConfigError, Interrupted
from luthier.models.adapter_plan import WEIGHTS_NAME
from luthier.runs.metrics import read_metrics
from luthier.training.loop import Trainer
from tiny_runs import tiny_config

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"init": name} for name in known_inits() if name != "kaiming"},
    "dora": {"dora": True, "init": "pissa"},
    "frozen a": {"train_a": False, "plus_ratio": 4.0},
    "ranks": {"ranks": {"down_proj": 2}, "layers": "1-"},
}
PLAIN: dict[str, Any] = {"rank": 16, "dropout": 0.0}
"""The defaults, in the place of what tiny_config has."""
SHORT: dict[str, Any] = {
    "train": {"epochs": 1, "steps": 6, "tokens_per_step": 512, "tokens_per_micro_batch": 256},
    "eval": {"every": None, "samples": 0},
    "checkpoint": {"every": None},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


def config_of(folder: Path, name: str, lora: dict[str, Any], **changes: Any) -> Config:
    return tiny_config(folder, name, **{**SHORT, "lora": lora, **changes})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS_NAME)


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_run = Trainer.run

    def run(trainer: Trainer) -> None:
        trainer.hooks.append(lambda one, _: one.interrupt("test") if one.progress.step == step else None)
        whole_run(trainer)

    monkeypatch.setattr(Trainer, "run", run)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns_and_resumes_bit_for_bit(
    variant: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {"rank": 4, "dropout": 0.1, **VARIANTS[variant]}
    said: list[str] = []
    whole = luthier.train(config_of(folder, f"{variant} whole".replace(" ", "-"), lora), say=said.append)
    rows = read_metrics(whole.folder / "metrics.jsonl")
    losses = [row["loss"] for row in rows if row["kind"] == "train" and "loss" in row]
    assert losses[-1] < losses[0] - 0.05
    table = [line for line in "\n".join(said).splitlines() if "rank 4" in line and "alpha" in line]
    assert table and all("; fused: " in line for line in table)
    config = config_of(folder, f"{variant} stopped".replace(" ", "-"), lora)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(Interrupted):
            luthier.train(config, say=lambda line: None)
    again = luthier.train(config, resume=True, say=lambda line: None)
    mine, theirs = tensors(whole.trained), tensors(again.trained)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_goes_on_with_an_adapter(folder: Path) -> None:
    first = luthier.train(
        config_of(folder, "first", {**PLAIN, "rank": 4, "init": "pissa"}), say=lambda line: None
    )
    said: list[str] = []
    for start in (first.folder, first.trained):
        config = config_of(folder, f"on-{start.name}", {**PLAIN, "start": str(start)}, optim={"lr": 0.0})
        second = luthier.train(config, say=said.append)
        before, after = tensors(first.trained), tensors(second.trained)
        assert all(
            torch.equal(before[name], after[name]) for name in before
        )  # nothing learned: it is the same
    assert any("going on with the adapter of" in line for line in said)


def test_b_learns_faster_where_asked(folder: Path) -> None:
    """One step of Adam moves every number by the learning rate."""
    lora = {"rank": 4, "plus_ratio": 8.0, "init": "orthogonal", "target": ["q_proj"]}
    steps = {
        "train": {"steps": 1, "tokens_per_step": 512},
        "schedule": {"name": "constant", "warmup_steps": 0},
    }
    moved = {}
    for lr in (0.0, 1e-3):
        run = luthier.train(
            config_of(folder, f"plus-{lr:g}", lora, optim={"lr": lr}, **steps), say=lambda line: None
        )
        moved[lr] = tensors(run.trained)
    for name, tensor in moved[1e-3].items():
        expected = 8e-3 if "lora_B" in name else 1e-3
        assert float((tensor - moved[0.0][name]).abs().median()) == pytest.approx(expected, rel=0.02), name


def test_a_frozen_a_stays(folder: Path) -> None:
    run = luthier.train(config_of(folder, "fa", {"rank": 4, "train_a": False}), say=lambda line: None)
    other = luthier.train(
        config_of(folder, "fa-0", {"rank": 4, "train_a": False}, optim={"lr": 0.0}), say=lambda line: None
    )
    mine, theirs = tensors(run.trained), tensors(other.trained)
    for name in mine:
        assert torch.equal(mine[name], theirs[name]) == ("lora_A" in name), name


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"init": "pisa"}, "did you mean pissa"),
        ({"layers": "4..8"}, "write a range"),
        ({"ranks": {"(": 4}}, "no regular expression"),
        ({**PLAIN, "start": ".", "rank": 8}, "lora.rank is given"),
    ],
)
def test_settings_that_cannot_work_are_told(lora: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(folder, "wrong", lora)


def test_a_start_without_an_adapter_is_told(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Name the folder of an adapter"):
        luthier.train(
            config_of(folder, "empty", {**PLAIN, "start": str(folder / "model")}), say=lambda line: None
        )


def test_what_was_saved_says_twice_the_rank(folder: Path) -> None:
    run = luthier.train(config_of(folder, "twice", {"rank": 4, "init": "olora"}), say=lambda line: None)
    settings = json.loads((run.trained / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["use_dora"]) == (8, 16, False)
