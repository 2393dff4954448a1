"""A whole run over two processes: the same result as one, one set of files, exact resume, a clean interrupt."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.config.dump import dump_config
from luthier.config.tree import Config
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import read_metrics
from tiny_runs import tiny_config

NO_DROPOUT = {"lora": {"rank": 4, "dropout": 0.0}}


def start(config: Config, *flags: str) -> subprocess.Popen[str]:
    """The run over two processes, as a user would start it."""
    file = Path(config.run.root).parent / f"{config.run.name}.yaml"
    file.write_text(dump_config(config))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "luthier", "train", str(file), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-4000:]
    return output


def result(run: Path) -> tuple[dict[str, torch.Tensor], list[tuple[str, int, float]]]:
    losses = [(r["kind"], r["step"], r["loss"]) for r in read_metrics(run / "metrics.jsonl") if "loss" in r]
    return load_file(run / "adapter" / "adapter_model.safetensors"), losses


def test_two_processes_give_the_run_of_one_and_resume_exactly(tmp_path: Path) -> None:
    one = luthier.train(tiny_config(tmp_path, "one", **NO_DROPOUT), say=lambda text: None).folder
    output = finish(start(tiny_config(tmp_path, "two", **NO_DROPOUT)))
    assert output.count("train data: 40 rows") == 1, "only the main process speaks"
    weights, losses = result(one)
    two_weights, two_losses = result(tmp_path / "runs" / "two")
    assert [row[:2] for row in losses] == [row[:2] for row in two_losses]
    assert [row[2] for row in two_losses] == pytest.approx([row[2] for row in losses], rel=1e-4)
    for name, tensor in weights.items():
        assert float((tensor - two_weights[name]).norm()) <= 1e-3 * float(tensor.norm()) + 1e-6, name

    config = tiny_config(tmp_path, "stopped", **NO_DROPOUT)
    process = start(config)
    folder = tmp_path / "runs" / "stopped"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder / "checkpoints" / "step-3").is_dir():
        assert process.poll() is None or (folder / "checkpoints" / "step-3").is_dir()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    subprocess.run(["pkill", "-9", "-f", str(tmp_path / "stopped.yaml")], check=False)
    process.communicate()
    assert RunFolder.open(folder).saved_steps()
    finish(start(config, "--resume"))
    again, again_losses = result(folder)
    assert again_losses == two_losses
    assert all(torch.equal(again[name], tensor) for name, tensor in two_weights.items())


def test_an_interrupt_stops_both_processes_at_one_step_with_a_whole_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "asked", train={"epochs": 200}, **NO_DROPOUT)
    process = start(config)
    folder = tmp_path / "runs" / "asked"
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "step-6").is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)  # torchrun hands it on to its processes
    output, _ = process.communicate(timeout=120)
    status = RunFolder.open(folder).status()
    assert status.state == "interrupted" and status.step in RunFolder.open(folder).saved_steps(), output[
        -3000:
    ]
    assert process.returncode != 0
