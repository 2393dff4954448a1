"""The worked example of the Python API runs as it is documented."""

import subprocess
import sys
from pathlib import Path

import luthier
from tiny_runs import save_tiny_model
from training_parts import ROOT


def test_the_worked_example_runs(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    command = [sys.executable, str(ROOT / "examples" / "python_api.py"), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 3: loss" in done.stdout and "merged model in" in done.stdout


def test_one_override_may_be_given_as_it_is() -> None:
    values = {"model": "a/b", "data": "x.jsonl"}
    assert luthier.check(values, "optim.lr=0.5") == luthier.check(values, ["optim.lr=0.5"])


def test_importing_luthier_imports_no_torch() -> None:
    code = "import sys, luthier; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
