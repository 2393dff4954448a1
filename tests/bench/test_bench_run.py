"""The harness from end to end on a tiny model: the same numbers as the plain model, counted right, written down."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.__main__ import main
from bench.contestants import checkpoint
from bench.contestants import gate as gate_worker
from bench.results import read
from bench.shapes import Shape

from bench import gate
from luthier.cli.main import main as luthier


@pytest.fixture(scope="module")
def make_spec(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """The gate's specifications, with models and rows in a folder of the test, written in this process."""
    folder = tmp_path_factory.mktemp("bench")

    def model(shape: Shape, rank: int, positions: int) -> Path:
        if not (target := folder / shape.name).exists():
            spec = {"folder": str(target), "rank": rank, "max_positions": positions, "device": "cpu"}
            checkpoint.run({**spec, "shape": shape.name}, gate_worker.Recorder())
        return target

    def make(name: str, **values: Any) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gate, "model_folder", model)
            patch.setattr(gate, "cache", lambda: folder)
            return gate._spec(name, **values)

    return make


@pytest.fixture
def specification(make_spec: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A few short rows for a tiny model."""
    return make_spec("tiny", num_rows=24, samples=8, longest=128) | {"max_steps": 3, "seconds": 60.0}


def test_luthier_learns_what_the_plain_model_learns(specification: dict[str, Any]) -> None:
    assert gate_worker.loss_drift(specification) < 1e-6


def test_gradients_are_those_of_the_plain_model(specification: dict[str, Any], tmp_path: Path) -> None:
    from bench.contestants import luthier_sft, reference
    from bench.parity import compare_gradients
    from safetensors.numpy import load_file

    files = [tmp_path / "mine.safetensors", tmp_path / "plain.safetensors"]
    for module, file in zip((luthier_sft, reference), files, strict=True):
        spec = {**specification, "max_steps": 1, "no_clip": True, "gradients": str(file)}
        module.run(spec, gate_worker.Recorder())
    found = compare_gradients(load_file(files[0]), load_file(files[1]))
    assert found["least_cosine"] > 1 - 1e-6 and found["relative_error"] < 1e-5


def test_no_attempt_of_the_gate_sees_rows_again(
    make_spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(trainer: Any, samples: int) -> Any:
        source = steps_of_rows(trainer, samples)
        step = source.step
        source.step = lambda number: seen.append(number) or step(number)
        return source

    steps_of_rows = gate_worker.luthier_sft.steps_of_rows
    monkeypatch.setattr(gate_worker.luthier_sft, "steps_of_rows", watched)
    spec = make_spec("tiny", num_rows=14, samples=2, longest=64)
    spec |= {"warm_up": 1, "steps": 2, "attempts": 3, "seconds": 60.0, "wanted": 1e9, "max_steps": 100}
    assert len(list(gate_worker.speeds(spec))) == 3
    assert seen == list(range(7))
    with pytest.raises(ValueError, match="14 rows are too few: 18 are seen"):
        next(gate_worker.speeds({**spec, "attempts": 4}))


def test_the_gate_measures(make_spec: Callable[..., dict[str, Any]]) -> None:
    spec = make_spec("tiny", num_rows=40, samples=8, longest=128)
    spec |= {"warm_up": 1, "steps": 2, "attempts": 2, "seconds": 0.0, "wanted": 1e9}
    (found,) = gate_worker.speeds(spec)
    assert found["attempts"] == 1  # no time was left for another
    assert found["efficiency"] > 0 and found["peak_bytes"] > 1e8 and found["faults_per_step"] >= 0
    first, second = gate_worker.speeds({**spec, "seconds": 60.0})
    assert (first["attempts"], second["attempts"]) == (1, 2)
    assert second["efficiency"] >= first["efficiency"]  # the best so far is told
    enough = {**spec, "seconds": 60.0, "wanted": 0.0}
    assert len(list(gate_worker.speeds({**enough, "most_faults": 10**9}))) == 1
    assert len(list(gate_worker.speeds({**enough, "most_faults": -1}))) == 2  # fast, but memory was asked for


def test_the_gate_sees_every_tensor() -> None:
    weight = torch.zeros(7, 50, requires_grad=True)

    def call() -> None:
        (torch.ones(3, 7) @ weight).sum().backward()

    assert gate_worker.largest_made(call) == 350  # the weight's gradient, made on the way back
    assert gate_worker.largest_made(lambda: torch.ones(3, 7)[0].sum()) == 21


def test_no_logits_of_all_predictions_at_once(make_spec: Callable[..., dict[str, Any]]) -> None:
    spec = make_spec("tiny-wide", num_rows=4, samples=4, longest=1024, tokens=1000)
    found = gate_worker.largest_tensor(spec)
    # two rows of 1,000 tokens go through a CPU at once
    assert found["largest"] < found["forbidden"] == 2 * 999 * 49152


def test_dry_run_writes_a_whole_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = ["A", "--dry-run", "--no-peers", "--no-parity", "--repeats", "1", "--out", str(tmp_path / "out")]
    assert main(given) == 0
    (path,) = (tmp_path / "out").iterdir()
    result = read(path)
    assert capsys.readouterr().out.rstrip().endswith(str(path))
    (row,) = result["summary"]
    assert row["contestant"] == "luthier" and row["failures"] == [] and row["tokens_per_second"]["median"] > 0
    assert result["limit"]["tokens_per_second"] > 0 and len(result["gemm"]) == 2
    assert result["gemm"][0]["measured"] and result["gemm"][0]["bfloat16"]["forward"] > 0
    assert result["runs"][0]["losses"] and result["machine"]["class"].startswith("cpu-")


def test_unknown_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    assert "there is no workload 'nonsense'" in capsys.readouterr().err


def test_luthier_bench_lists_the_workloads(capsys: pytest.CaptureFixture[str]) -> None:
    assert luthier(["bench", "--list"]) == 0
    assert "Alpaca" in capsys.readouterr().out


def test_luthier_bench_without_a_checkout(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import luthier.cli.bench as command

    monkeypatch.setattr(command, "__file__", "/nowhere/lib/site-packages/luthier/cli/bench.py")
    assert luthier(["bench", "--list"]) == 2
    assert "luthier bench needs Luthier's repository" in capsys.readouterr().err
