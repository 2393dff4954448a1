"""Who takes part, in which order, and what the sweep declares."""

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.app import Options, find, same_answers
from bench.contest import Contestant, imitation, luthier, peers, sweep
from bench.gpu import PLAN, failures, lease
from bench.rows import Rows
from bench.runner import Task, fastest, interleaved
from bench.shapes import SHAPES
from bench.table import footnotes
from bench.workloads import WORKLOADS
from rich.console import Console

import bench
from bench import runner

A, B, C = (Contestant(name, "x", "") for name in "abc")


def test_everybody_runs_once_before_anybody_runs_twice() -> None:
    order = [contestant.name for contestant in interleaved([A, B, C], 3, {})]
    assert order == list("abcabcabc")


def test_a_resumed_run_makes_what_is_missing_in_the_same_order() -> None:
    order = [contestant.name for contestant in interleaved([A, B, C], 3, {"a": 2, "b": 1})]
    assert order == list("cbcabc")


def test_the_sweep_is_the_whole_product() -> None:
    workload = WORKLOADS["A"]
    assert workload.cpu is not None
    rows = sweep(workload, workload.cpu, 800)
    assert len(rows) == len({row.name for row in rows}) == 2 * 4 * 2 * 2
    for key, values in {"dtype": 2, "micro": 4, "checkpointing": 2, "packing": 2}.items():
        assert len({row.options[key] for row in rows}) == values
    assert {row.options["max_length"] for row in rows} == {1024}


def test_the_sweep_of_preferences_is_the_whole_product_without_packing() -> None:
    workload = WORKLOADS["D"]
    assert workload.cpu is not None
    rows = sweep(workload, workload.cpu, 800)
    assert len(rows) == len({row.name for row in rows}) == 2 * 2 * len(workload.cpu.micro)
    assert "trl-fp32-mb1" in {row.name for row in rows} and all(row.same_rows for row in rows)
    assert luthier(workload).options == {"method": "dpo"}
    best = [c for c in peers(workload, workload.cpu, 800, "cpu", [rows[0].options]) if c.name == "trl-best"]
    assert [(c.module, c.options) for c in best] == [("trl_dpo", rows[0].options)]


def test_memory_of_preferences_is_told_next_to_that_of_imitation() -> None:
    rows = [{"contestant": "luthier", "peak_bytes": {"median": 3e9}, "notes": [], "failures": []}]
    rows.append({**rows[0], "contestant": imitation().name, "peak_bytes": {"median": 2e9}})
    assert footnotes({"summary": rows, "gemm": []}) == [
        "peak memory of luthier is 1.50 times that of SFT on the same tokens"
    ]


def test_thin_measurements_are_told() -> None:
    runs = [
        {"contestant": name, "status": "done", "steps": steps}
        for name, steps in (("a", 9), ("a", 1), ("b", 3))
    ]
    runs.append({"contestant": "c", "status": "failed"})
    assert footnotes({"summary": [], "gemm": [], "runs": runs}) == ["a: 1 timed steps in a run, which is few"]


def test_long_documents_are_not_cut_by_a_default() -> None:
    workload = WORKLOADS["C"]
    assert workload.cpu is not None
    everybody = [*sweep(workload, workload.cpu, 4096), *peers(workload, workload.cpu, 4096, "cpu", [])]
    assert all(c.options["max_length"] == 4096 for c in everybody if c.module == "trl_sft")


@pytest.mark.parametrize("key", list(WORKLOADS))
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_names_are_unique_and_modules_exist(key: str, device: str) -> None:

    workload = WORKLOADS[key]
    size = workload.gpu if device == "cuda" else workload.cpu
    if size is None:
        pytest.skip("not measured there")
    best = [{"micro": 1, "packing": False}, {"micro": 2, "packing": True}]
    everybody = [luthier(workload), *peers(workload, size, 512, device, best)]
    assert len({c.name for c in everybody}) == len(everybody)
    assert len({c.name for c in everybody if not c.peer}) == 1
    folder = Path(bench.__file__).parent / "contestants"
    assert all((folder / f"{c.module}.py").exists() for c in everybody)
    assert [c.same_rows for c in everybody if c.name == "trl-best-2"] in ([], [False])


def test_the_fastest_rows_that_worked() -> None:
    probes = [
        {"status": "done", "tokens_per_second": 5.0, "options": 1},
        {"status": "failed", "tokens_per_second": 50.0, "options": 2},
        {"status": "done", "tokens_per_second": 9.0, "options": 3},
        {"status": "done", "options": 4},
    ]
    assert fastest(probes) == [3, 1]  # pyright: ignore[reportArgumentType]


def test_workloads_are_found_in_any_case() -> None:
    assert find("a") is WORKLOADS["A"] and find("Generation") is WORKLOADS["generation"]
    with pytest.raises(ValueError, match=r"there is no workload 'H'; there are A, B, C"):
        find("H")
    assert Options().workloads == ()


def test_same_answers() -> None:
    runs = [
        {"contestant": "hf-float32", "answers": [1, 2, 3, 4]},
        {"contestant": "luthier", "answers": [1, 9, 3, 4]},
    ]
    assert same_answers({"runs": runs}) == {"hf-float32": 1.0, "luthier": 0.75}
    assert same_answers({"runs": runs[1:]}) == {}


def test_the_plan_of_a_lease_names_what_exists() -> None:
    assert {part.workload for part in PLAN} >= {"A", "C", "E", "F", "G"}
    for part in PLAN:
        size = WORKLOADS[part.workload].gpu
        assert size is not None and part.model in size.models
        assert not part.tokens or part.tokens in size.tokens
    first = [key for key, _ in groupby(PLAN, key=lambda part: part.workload)]
    assert first[0] == "A"


def test_a_lease_leaves_out_what_no_longer_fits(tmp_path: Path) -> None:

    found = lease(
        PLAN, minutes=0.1, folder=tmp_path, dry_run=True, console=Console(quiet=True), clock=lambda: 0.0
    )
    assert [part["skipped"] for part in found] == ["no time was left"] * len(PLAN)


def test_absent_libraries_are_told_apart_from_failures() -> None:
    runs = [
        {"contestant": "x", "status": "absent", "error": "ModuleNotFoundError"},
        {"contestant": "y", "status": "failed", "error": "ValueError: no"},
    ]
    assert failures([{"workload": "A", "runs": runs}]) == ["A: y: ValueError: no"]


def test_each_run_is_held_against_the_machine_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that loses half its speed half way: rates halve, shares of the machine around do not; the limit is
    that of the machine at its best."""
    workload, rows = WORKLOADS["A"], Rows(np.arange(300, dtype=np.int32), np.array([[100, 200]]))
    assert workload.cpu is not None
    task = Task(workload, workload.cpu, SHAPES["tiny"], "cpu", 300, Path("m"), rows, Path("r"), 1.0)
    speeds = iter([4.0, 4.0, 4.0, 2.0, 2.0, 2.0])  # the last run lies between two slow measurements
    now = [4.0]

    def machine(task: Task, seconds: float) -> dict[str, Any]:
        now[0] = next(speeds)
        kinds = dict.fromkeys(("forward", "input_gradient", "weight_gradient"), now[0] * 1e9)
        return {
            "load": 0.0,
            "others_cores": 0.0,
            "float32": kinds,
            "bfloat16": kinds,
            "bandwidth": now[0] * 1e9,
        }

    def one(task: Task, contestant: Contestant) -> tuple[dict[str, Any], None]:
        head = {"contestant": contestant.name, "about": "", "options": {}, "error": "", "others_cores": 0.0}
        return {**head, "status": "done", "peak_bytes": 1, "tokens_per_second": 100.0 * now[0]}, None

    monkeypatch.setattr(runner, "measure_machine", machine)
    monkeypatch.setattr(runner, "run_one", one)
    saved: list[int] = []
    result = runner.compete(
        task, [A, B], 2, {}, lambda text: None, lambda found: saved.append(len(found["runs"]))
    )
    assert [run["contestant"] for run in result["runs"]] == ["a", "b", "a", "b"]
    assert saved == [1, 2, 3, 4, 4] and len(result["gemm"]) == 5
    around, shares = ([run[name] for run in result["runs"]] for name in ("share_around", "share_of_limit"))
    assert around[0] == pytest.approx(around[1]) == pytest.approx(around[3])
    assert shares[0] == pytest.approx(shares[1]) == pytest.approx(2 * shares[3]) == pytest.approx(around[0])
    assert result["limit"]["forward"] == 4e9


@pytest.mark.parametrize(("factor", "exceeded"), [(0.99, False), (1.01, True)])
def test_a_run_above_the_limit_marks_the_result(
    monkeypatch: pytest.MonkeyPatch, factor: float, exceeded: bool
) -> None:
    workload, rows = WORKLOADS["A"], Rows(np.arange(300, dtype=np.int32), np.array([[100, 200]]))
    assert workload.cpu is not None
    task = Task(workload, workload.cpu, SHAPES["tiny"], "cpu", 300, Path("m"), rows, Path("r"), 1.0)
    kinds = dict.fromkeys(("forward", "input_gradient", "weight_gradient"), 1e9)
    machine = {"load": 0.0, "float32": kinds, "bfloat16": kinds, "bandwidth": 1e9}
    limit = runner.limit_of(task, [machine])
    assert limit is not None
    facts = {
        "contestant": "a",
        "about": "",
        "options": {},
        "error": "",
        "others_cores": 0.0,
        "status": "done",
    }
    rate = factor * limit["tokens_per_second"]
    monkeypatch.setattr(runner, "measure_machine", lambda task, seconds: machine)
    monkeypatch.setattr(
        runner,
        "run_one",
        lambda task, contestant: ({**facts, "peak_bytes": 1, "tokens_per_second": rate}, None),
    )
    result = runner.compete(task, [A], 1, {}, lambda text: None, lambda found: None)
    assert result["limit"]["exceeded"] is exceeded
    assert ("faster than the limit" in " ".join(footnotes(result))) is exceeded


def test_time_goes_to_the_dtypes_that_the_machine_computes() -> None:
    from bench.contestants.gemm import worth_measuring

    def glances(**forward: float) -> dict[str, dict[str, float]]:
        return {name: {"forward": rate} for name, rate in forward.items()}

    assert worth_measuring(glances(float32=100.0, bfloat16=12.0)) == ["float32"]
    assert worth_measuring(glances(float32=130.0, bfloat16=1000.0)) == ["bfloat16"]
    assert worth_measuring(glances(float32=100.0, bfloat16=150.0)) == ["float32", "bfloat16"]
