"""What all Triton kernels share, and that the compiler takes every one of them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import triton_compile
import triton_parts
from luthier.errors import ModelError
from luthier.kernels import triton as triton_side
from luthier.kernels.triton import launch


def test_every_kernel_compiles_for_a_gpu_without_spilling() -> None:
    """To machine code of compute capability 8.0, and into the 48 to 99 KB of shared memory that all such cards have."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    tools = Path(launch.triton.__file__).parent / "backends" / "nvidia" / "bin"
    if not (tools / "ptxas").exists():
        pytest.skip("this build of Triton has no assembler for NVIDIA GPUs")
    script = [sys.executable, triton_compile.__file__, "80"]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    modules = {path.stem for path in Path(launch.__file__).parent.glob("*.py")} - {"__init__", "launch"}
    assert {row[0].partition(".")[0] for row in rows} == modules  # a new op must be added to the script
    assert max(int(row[-2]) for row in rows) <= 99 * 1024


def test_without_triton_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("launch_again", launch.__file__)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ModelError, match=r"package triton is not installed.*pip install triton"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_tensors_that_are_not_served_stay_in_plain_torch() -> None:
    assert triton_side.available()
    assert not triton_side.serves(torch.zeros(2))  # not on a GPU
    if triton_parts.GPU:
        assert triton_side.serves(torch.zeros(2, device="cuda"), None)
        assert not triton_side.serves(torch.zeros(2, device="cuda", dtype=torch.float64))


def test_what_no_kernel_computes_in_is_refused() -> None:
    with pytest.raises(AssertionError):
        launch.check(torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(AssertionError):
        launch.check(torch.zeros(2, 3).T)
    launch.check(None, torch.zeros(3, 4)[:, :2], torch.zeros(4, 1)[:, :1])


@pytest.mark.parametrize("width", [1, 2, 3, 63, 64, 576, 4096, 5000, 18432])
def test_sizes_are_powers_of_two_that_hold_the_width(width: int) -> None:
    columns = launch.block(width)
    assert width <= columns < 2 * max(width, 1) and columns & (columns - 1) == 0
    tile = launch.rows(columns) * columns
    assert tile >= launch.ELEMENTS and tile == max(launch.ELEMENTS, columns)
    assert 4 <= launch.options(tile)["num_warps"] <= 16
