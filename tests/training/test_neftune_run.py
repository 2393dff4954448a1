"""Noise on embeddings through the config: told at the start, new weights, none when the run is measured."""

from pathlib import Path

import luthier
from luthier.runs.metrics import read_metrics
from tiny_runs import tiny_config


def losses(run: Path, kind: str) -> list[float]:
    return [
        row["loss"] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == kind and "loss" in row
    ]


def test_a_noisy_run_says_so_and_measures_without_noise(tmp_path: Path) -> None:
    said: list[str] = []
    changes = {"lora": {"dropout": 0.0}, "optim": {"lr": 0.0}, "eval": {"samples": 0}}
    quiet = luthier.train(tiny_config(tmp_path, "quiet", **changes), say=lambda line: None).folder
    changes["train"] = {"neftune_noise_alpha": 15.0}
    noisy = luthier.train(tiny_config(tmp_path, "noisy", **changes), say=said.append).folder
    (line,) = [line for line in said if "NEFTune" in line]
    assert "alpha 15" in line and line.endswith("what rows begin with alike is computed for each of them")
    assert losses(noisy, "eval") == losses(quiet, "eval") != []
    pairs = list(zip(losses(noisy, "train"), losses(quiet, "train"), strict=True))
    assert pairs and all(abs(one - other) > 1e-4 for one, other in pairs)
