"""Every method has an example that trains as it stands, on rows of its own, with a tiny model in the model's place."""

import math
from pathlib import Path

import pytest
import torch

import luthier
from luthier.runs.metrics import read_metrics
from tiny_runs import save_tiny_model
from training_parts import ROOT, method_names

FOLDER = ROOT / "examples" / "methods"
STEPS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder / "teacher", tied=False)
    return save_tiny_model(folder / "model")


def test_every_method_has_an_example() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} >= set(method_names())


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_the_example_trains(name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    overrides = [f"model.name={model}", f"train.steps={STEPS}", f"run.root={tmp_path}", "run.name=tried"]
    if "\nteacher:" in Path(f"{name}.yaml").read_text():
        overrides.append(f"teacher.name={model.parent / 'teacher'}")
    try:
        torch.set_num_threads(1)
        result = luthier.train(f"{name}.yaml", [*overrides, "data.cache=false"], say=lambda line: None)
    finally:
        torch.set_num_threads(threads)
    steps = [row for row in read_metrics(result.folder / "metrics.jsonl") if row["kind"] == "train"]
    assert len(steps) == STEPS and all(math.isfinite(row["loss"]) for row in steps)
    assert any(row["grad_norm"] > 0 for row in steps)
    assert any(result.trained.iterdir()) and result.report.is_file()
