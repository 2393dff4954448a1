"""A run of own answers over two processes is that of one, and goes on exactly where it was stopped."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.config.tree import Config
from training.test_teacher_run import distilling
from training.test_two_process_run import finish, result, start


def config_of(folder: Path, name: str) -> Config:
    method: dict[str, Any] = {"name": "gkd", "lmbda": 0.6, "max_new_tokens": 10}
    lora = {"rank": 4, "dropout": 0.0}
    more = {"train": {"epochs": 1, "tokens_per_step": 512, "tokens_per_micro_batch": 256}}
    return distilling(folder, name, method=method, lora=lora, eval={"samples": 0}, **more)


def test_two_processes_write_what_one_writes_and_resume_exactly(tmp_path: Path) -> None:
    one = luthier.train(config_of(tmp_path, "one"), say=lambda text: None).folder
    output = finish(start(config_of(tmp_path, "two")))
    assert output.count("in 60% of the steps the model answers the prompts itself") == 1
    weights, losses = result(one)
    two_weights, two_losses = result(tmp_path / "runs" / "two")
    assert [row[:2] for row in losses] == [row[:2] for row in two_losses]
    assert [row[2] for row in two_losses] == pytest.approx([row[2] for row in losses], rel=1e-3)
    for name, tensor in weights.items():
        assert float((tensor - two_weights[name]).norm()) <= 1e-2 * float(tensor.norm()) + 1e-6, name

    config, folder = config_of(tmp_path, "stopped"), tmp_path / "runs" / "stopped"
    process = start(config)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "step-3").is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)  # torchrun hands it on to its processes
    process.communicate(timeout=120)
    finish(start(config, "--resume"))
    again, again_losses = result(folder)
    assert again_losses == two_losses
    assert all(torch.equal(again[name], tensor) for name, tensor in two_weights.items())
