"""The script behind docs/measurements.md's tables of CPU kernels: all of them, in small, and a wrong one is told."""

import json
from pathlib import Path

import pytest
import torch

from bench import cpu_kernels
from luthier.kernels import gated


def test_a_dry_run_compares_every_kernel_with_plain_torch(tmp_path: Path) -> None:
    assert cpu_kernels.main(["--dry-run", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("cpu-kernels-dry-run-*.json")
    ops = json.loads(path.read_text(encoding="utf-8"))["ops"]
    told = " ".join(op["op"] for op in ops)
    for name in (
        "RMS norm",
        "rotary",
        "SwiGLU",
        "log-probability",
        "attention",
        "adapters",
        "gradient of a weight",
    ):
        assert name in told
    for op in ops:
        assert op["right"] and op["seconds"]["luthier"]["median"] > 0
        assert ("copy" in op["seconds"]) == (op["bytes"] > 0)


def test_a_wrong_kernel_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gated, "forward", lambda gate, up, kind, out: torch.zeros_like(gate))
    assert cpu_kernels.main(["--dry-run", "--out", str(tmp_path)]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.endswith("WRONG")]
    assert len(wrong) == 1 and wrong[0].startswith("SwiGLU, forward")
