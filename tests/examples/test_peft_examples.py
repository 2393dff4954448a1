"""The examples of adapters of peft train as they stand, with a tiny model in the model's place."""

import math
from pathlib import Path

import pytest

import luthier
from luthier.runs.metrics import read_metrics
from tiny_runs import save_tiny_model
from training_parts import ROOT

pytest.importorskip("peft")
FOLDER = ROOT / "examples" / "peft"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_the_example_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    model = save_tiny_model(tmp_path / "model")
    overrides = [f"model.name={model}", "train.steps=3", f"run.root={tmp_path}", "run.name=tried"]
    result = luthier.train(f"{name}.yaml", [*overrides, "data.cache=false"], say=lambda line: None)
    steps = [row for row in read_metrics(result.folder / "metrics.jsonl") if row["kind"] == "train"]
    assert len(steps) == 3 and all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in steps)
    assert (result.trained / "adapter_config.json").is_file()
