"""Estimates of the curvature: targets are drawn as the model predicts, and Sophia runs, resumes and refuses."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.errors import ConfigError, Interrupted
from luthier.kernels.sampled_targets import sampled_targets
from luthier.kernels.softmax_gradient import LogitShape
from luthier.runs.metrics import read_metrics, series
from luthier.training.loop import Trainer
from luthier.training.run import run
from tiny_runs import tiny_config

SOPHIA = {"optim": {"name": "sophia", "lr": 1e-2, "curvature_every": 4}, "lora": {"dropout": 0.0}}


def quiet(line: str) -> None:
    pass


def losses(folder: Path) -> list[float]:
    found = series(read_metrics(folder / "metrics.jsonl"), "train", "loss")
    return [value for _, value in found if value is not None]


@pytest.mark.parametrize("shape", [LogitShape(), LogitShape(0.5, 2.0)])
def test_targets_are_drawn_from_the_distribution(shape: LogitShape) -> None:
    draw, num = torch.Generator().manual_seed(0), 20_000
    hidden, weight, bias = (torch.randn(size, generator=draw) for size in ((1, 4), (7, 4), (7,)))
    found = sampled_targets(hidden.expand(num, 4), weight, bias, shape, draw, chunk=333)
    share = torch.bincount(found, minlength=7) / num
    expected = torch.softmax(shape(hidden @ weight.T + bias), -1)[0]
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / num).sqrt() + 1e-6).all()


def test_a_run_learns_and_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tiny_config(tmp_path, "whole", **SOPHIA), say=quiet)
    assert losses(whole.folder)[-1] < losses(whole.folder)[0] - 0.2
    original = Trainer.step

    def stopped(self: Trainer, batches: Any) -> Any:
        report = original(self, batches)
        if report.step == 5:
            signal.raise_signal(signal.SIGINT)
        return report

    monkeypatch.setattr(Trainer, "step", stopped)
    with pytest.raises(Interrupted):
        run(tiny_config(tmp_path, "resumed", **SOPHIA), say=quiet)
    monkeypatch.setattr(Trainer, "step", original)
    resumed = run(tiny_config(tmp_path, "resumed", **SOPHIA), resume=True, say=quiet)
    assert losses(resumed.folder) == losses(whole.folder)


def test_what_has_no_tokens_or_one_pass_only_is_refused(tmp_path: Path) -> None:
    noisy = tiny_config(tmp_path, "noisy", **SOPHIA, train={"neftune_noise_alpha": 5.0})
    with pytest.raises(ConfigError, match=r"optim\.name: sophia needs a second pass"):
        run(noisy, say=quiet)
