"""An optimizer's states in files: the same run, bit for bit, and what lies in them is no memory of the process."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.config.tree import Config
from luthier.errors import ConfigError, Interrupted, RunError
from luthier.optim import on_disk
from luthier.optim.adamw import AdamW
from luthier.optim.on_disk import OnDisk
from luthier.runs.metrics import read_metrics, series
from luthier.training.loop import Trainer
from luthier.training.run import run
from luthier.training.updates import disk_of
from tiny_runs import tiny_config


def config(folder: Path, name: str, **changes: Any) -> Config:
    return tiny_config(folder, name, **{"lora": ..., "memory": {"optimizer": "disk"}, **changes})


def losses(folder: Path) -> list[Any]:
    return series(read_metrics(folder / "metrics.jsonl"), "train", "loss")


def quiet(line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def all_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "LEAST", 0)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_the_same_losses_and_an_exact_resume(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = {"name": optimizer}
    expected = run(config(tmp_path, "ram", optim=optim, memory={"optimizer": "ram"}), say=quiet)
    whole = run(config(tmp_path, "disk", optim=optim), say=quiet)
    assert losses(whole.folder) == losses(expected.folder)
    original = Trainer.step

    def stopped(self: Trainer, batches: Any) -> Any:
        report = original(self, batches)
        if report.step == 5:
            signal.raise_signal(signal.SIGINT)
        return report

    monkeypatch.setattr(Trainer, "step", stopped)
    with pytest.raises(Interrupted):
        run(config(tmp_path, "resumed", optim=optim), say=quiet)
    monkeypatch.setattr(Trainer, "step", original)
    resumed = run(config(tmp_path, "resumed", optim=optim), resume=True, say=quiet)
    assert losses(resumed.folder) == losses(whole.folder)
    assert not list((tmp_path / "runs").glob(".states-*"))


def test_states_lie_in_files_without_names(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.randn(300, 200))
    optimizer = AdamW().build([("w", weight)], 1e-3)
    optimizer.on_disk = OnDisk(tmp_path)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert optimizer.on_disk.num_bytes == 2 * weight.nbytes
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if ".states-" in line]
    ranges = [tuple(int(end, 16) for end in fields[0].split("-")) for fields in maps]
    for name in ("mean", "square"):
        address = optimizer.state[weight][name].data_ptr()
        assert any(first <= address < last for first, last in ranges)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_and_a_gpu_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(on_disk.os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"has no room for .* MiB more"):
        OnDisk(tmp_path).place(torch.zeros(1 << 20))
    assert not list(tmp_path.iterdir())

    with pytest.raises(ConfigError, match=r"memory\.optimizer is disk, which is for training on a CPU"):
        disk_of(config(tmp_path, "gpu"), on_gpu=True)
