"""Runs beside a base that others stored: they learn, go on exactly, answer, and become one model again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.cli.export import command as export
from luthier.config.tree import Config
from luthier.errors import ConfigError, ModelError
from luthier.models.inference import load_for_inference
from luthier.models.quantised.load import quantised
from luthier.runs.metrics import read_metrics, series
from luthier.training.run import run
from packed_models import store_as
from resuming import same_weights, stopped_and_resumed
from tiny_runs import save_tiny_model, tiny_config, try_example
from training_parts import ROOT

IDS = torch.arange(4, 40)[None]
SAMPLES = ("gptq 4 by activation", "awq", "compressed_tensors packed 4 symmetric=True channel=False")


def config(folder: Path, name: str, sample: str = "awq", **changes: Any) -> Config:
    fresh = not (folder / "model").exists()
    made = tiny_config(folder, name, **{"lora": {"dropout": 0.0}, **changes})
    if fresh:
        store_as(folder / "model", sample)
    return made


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_run_learns_and_its_model_is_what_was_trained(sample: str, tmp_path: Path) -> None:
    said: list[str] = []
    result = run(config(tmp_path, "run", sample), say=said.append)
    rows = read_metrics(result.folder / "metrics.jsonl")
    (_, first), *_, (_, last) = series(rows, "train", "loss")
    (_, early), *_, (_, late) = series(rows, "eval", "loss")
    assert first and last and early and late and last < first - 0.3 and late < early
    kind = sample.partition(" ")[0].replace("_", "-")
    assert any(line.startswith(kind) and "bits each" in line for line in said)
    assert any(line.startswith("2 of 2 layers fused") for line in said)
    answering = load_for_inference(str(result.folder), dtype="float32").model
    assert len(quantised(answering)) == 14
    expected = answering(IDS).logits
    export(result.folder, "merged", None)
    merged = load_for_inference(str(result.folder / "merged"), dtype="float32").model
    assert not quantised(merged) and not list(result.folder.glob(".unpacked*"))
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    alone = load_for_inference(str(result.trained), dtype="float32").model
    torch.testing.assert_close(alone(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_going_on_is_exact(tmp_path: Path) -> None:
    whole = run(config(tmp_path, "whole"), say=lambda line: None)
    resumed = stopped_and_resumed(config(tmp_path, "stopped"))
    assert same_weights(whole, resumed)
    assert whole.eval_loss == resumed.eval_loss


def test_all_weights_are_trained_once_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config(tmp_path, "made")
    with pytest.raises(ConfigError, match=r"is stored as awq, 4 bits.*lora: \{\}.*model\.unpack: true"):
        run(tiny_config(tmp_path, "packed", lora=...), say=lambda line: None)
    with pytest.raises(ModelError, match=r"quantised already.*Leave out the section quant.*model\.unpack"):
        run(tiny_config(tmp_path, "twice", quant="nf4"), say=lambda line: None)
    unpack = {"name": str(tmp_path / "model"), "unpack": True}
    short = {
        "train": {"epochs": 1, "steps": 2, "tokens_per_step": 512},
        "eval": {"every": None, "samples": 0},
    }
    result = run(tiny_config(tmp_path, "full", lora=..., model=unpack, **short), say=lambda line: None)
    assert (result.trained / "config.json").is_file()
    said: list[str] = []
    run(tiny_config(tmp_path, "again", model=unpack, quant="nf4", **short), say=said.append)
    assert any(line.startswith("nf4: ") for line in said)


def test_the_example_trains(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    store_as(model, "awq")
    result = try_example(ROOT / "examples" / "qwen3-8b-awq.yaml", model, tmp_path)
    assert (result.trained / "adapter_model.safetensors").is_file()
