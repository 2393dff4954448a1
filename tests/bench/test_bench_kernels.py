"""The benchmark of the kernels runs as one command, in small, and says whether they are right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "kernels.py"


def test_a_dry_run_checks_every_kernel_and_writes_one_file(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("kernels-dry-run-*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["dry_run"] and found["copy_gb_per_s"] > 0 and "triton" in found["machine"]
    ops = {row["op"].split()[0].strip(",") for row in found["ops"]}
    kernels = SCRIPT.parents[1] / "src" / "luthier" / "kernels" / "triton"
    assert ops == {path.stem for path in kernels.glob("*.py")} - {"__init__", "launch"}
    for row in found["ops"]:
        assert row["right"] and len(row["error"]) == len(row["plain_error"]) and row["eager_seconds"] > 0
        assert all(part["bytes"] > 0 and part["seconds"] > 0 for part in row["parts"].values())


def test_without_a_gpu_it_says_what_runs_instead() -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "No GPU that torch can use was found. --dry-run runs" in done.stdout
