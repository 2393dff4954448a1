"""The script for a lease of a GPU: what it would do there, and all of it in small on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench.gpu import LARGE, PLAN, SMALL, Part, cast, chosen, lease
from bench.workloads import WORKLOADS
from rich.console import Console

from bench import gpu

QUIET = Console(quiet=True)


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Plans without models on disk."""
    from bench import prepare

    monkeypatch.setattr(prepare, "model_folder", lambda *args: tmp_path)
    monkeypatch.setattr(prepare, "cache", lambda: tmp_path)


def test_settings_chosen_by_hand_are_called_so(no_models: None) -> None:
    (task,) = chosen(Part("A", SMALL), dry_run=True)
    names = ("luthier", "trl-default", "trl-tuned", "trl-tuned-packed", "trl-liger", "unsloth")
    found = cast(task, names, "cuda")
    assert {contestant.name for contestant in found} == set(names)
    for contestant in found:
        assert "sweep" not in contestant.about or "no sweep" in contestant.about
        if contestant.name.startswith(("trl-tuned", "trl-liger")):
            assert "chosen by hand" in contestant.about
    assert {name for part in PLAN for name in part.names} <= {*names, "hf-bfloat16", "hf-default"}


def test_medians_are_of_three_rounds_and_8b_qlora_gets_6_gigabytes() -> None:
    assert all(part.repeats >= 3 for part in PLAN)
    size = WORKLOADS["G"].gpu
    assert size is not None and 6 in size.memory_caps


@pytest.mark.parametrize(("minutes", "rounds"), [(10.0, 3), (4.0, 2), (2.0, 1)])
def test_a_part_gets_as_many_rounds_as_fit(
    no_models: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, minutes: float, rounds: int
) -> None:
    done: list[int] = []
    monkeypatch.setattr(gpu, "one", lambda task, part, *rest: done.append(part.repeats) or {})
    plan = (Part("A", SMALL, estimate=110.0),)
    lease(plan, minutes=minutes, folder=tmp_path, dry_run=True, console=QUIET, clock=lambda: 0.0)
    assert done == [rounds]


@pytest.mark.slow
def test_dry_run_of_short_and_long_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script as it is started on a GPU, in small: training, rates of the machine, parity."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "PLAN", (Part("A", SMALL), Part("C", SMALL, 8192), Part("E", SMALL)))
    given = ["--dry-run", "--no-peers", "--out", str(tmp_path), "--part", "A", "--part", "C"]
    assert gpu.main(given) == 0
    found: list[dict[str, Any]] = json.loads((tmp_path / gpu.FILE).read_text())["results"]
    assert [result["workload"] for result in found] == ["A", "C"]
    for result in found:
        (row,) = result["summary"]
        assert (
            row["contestant"] == "luthier" and not row["failures"] and row["tokens_per_second"]["median"] > 0
        )
        assert result["limit"]["tokens_per_second"] > 0 and "skipped" not in result
        assert (
            max(result["parity"]["losses"]) < 1e-5 and result["parity"]["gradient"]["least_cosine"] > 0.99999
        )
    assert len(gpu.unpack(tmp_path / gpu.FILE, tmp_path / "history")) == 2


@pytest.mark.slow
def test_dry_run_of_weights_in_four_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QLoRA under each of the caps of memory; plain transformers has no losses to compare it with."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "PLAN", (Part("G", LARGE, names=("luthier",)),))
    assert gpu.main(["--dry-run", "--no-peers", "--out", str(tmp_path), "--part", "G"]) == 0
    found: list[dict[str, Any]] = json.loads((tmp_path / gpu.FILE).read_text())["results"]
    assert found
    for result in found:
        (row,) = result["summary"]
        assert row["contestant"] == "luthier" and not row["failures"] and "parity" not in result
