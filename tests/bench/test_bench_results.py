"""Results on disk and as tables, profiles, machine classes, parity's arithmetic."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.parity import compare_gradients, relative
from bench.profile import kind_of, shares
from bench.table import show
from rich.console import Console

from bench import results


def a_result(**changes: Any) -> dict[str, Any]:
    spread = {"median": 20.0, "min": 10.0, "max": 30.0}
    empty = dict.fromkeys(
        ("learned_per_second", "first_step_seconds", "job_seconds", "faults_per_step"), None
    )
    row = {
        **empty,
        "about": "",
        "options": {},
        "repeats": 3,
        "failures": [],
        "notes": [],
        "share_of_limit": {**spread, "median": 0.5},
    }
    mine = {
        **row,
        "contestant": "luthier",
        "tokens_per_second": spread,
        "peak_bytes": {**spread, "median": 2e9},
    }
    slow = {**row, "contestant": "slow", "tokens_per_second": None, "bound_tokens_per_second": 2.0}
    return {
        "schema": 1,
        "date": "2026-01-02",
        "workload": "A",
        "about": "chats",
        "device": "cpu",
        "model": "tiny",
        "tokens": 1024,
        "memory_cap": None,
        "settings": {},
        "machine": {"class": "cpu-avx2-2"},
        "gemm": [{"load": 0.1}],
        "limit": {"tokens_per_second": 40.0, "dtype": "float32"},
        "runs": [],
        "summary": [mine, {**slow, "peak_bytes": None, "notes": ["too slow"], "share_of_limit": None}],
        **changes,
    }


def test_names_of_files() -> None:
    folder = Path("nowhere")
    assert results.path_for(a_result(), folder).name == "2026-01-02-A-cpu.json"
    gpu = a_result(device="cuda", memory_cap=8)
    assert results.path_for(gpu, folder).name == "2026-01-02-A-cuda-tiny-1024-8GB.json"


def test_no_result_is_written_over(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        path = results.path_for(a_result(), tmp_path)
        results.write(a_result(), path)
        names.append(path.name)
    assert names == ["2026-01-02-A-cpu.json", "2026-01-02-A-cpu.2.json", "2026-01-02-A-cpu.3.json"]


def test_a_result_survives_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    results.write(a_result(extra=(1, 2.123456789123)), path)
    assert results.read(path)["extra"] == [1, 2.1234568]
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"schema": 1}))
    with pytest.raises(ValueError, match=r"r\.json is no result of this harness: it lacks date, workload"):
        results.read(path)
    path.write_text(json.dumps(a_result(schema=0)))
    with pytest.raises(ValueError, match="it lacks its schema"):
        results.read(path)


def test_the_history_can_be_read() -> None:
    for path in results.FOLDER.glob("????-??-??-*-*.json"):
        if not path.name.startswith("quickstart"):
            assert results.read(path)["summary"], path.name


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["avx2", "avx512f", "avx512_bf16", "amx_bf16"], "cpu-amx_bf16-4"),
        (["avx2", "avx512f"], "cpu-avx512f-4"),
        (["avx2", "fma"], "cpu-avx2-4"),
        (["asimd", "bf16", "i8mm"], "cpu-i8mm-4"),
        ([], "cpu-riscv64-4"),
    ],
)
def test_machine_classes(flags: list[str], name: str) -> None:
    environment = {"cpu": {"flags": flags, "cores": 4, "architecture": "riscv64"}}
    assert results.machine_class(environment, "cpu") == name
    assert results.machine_class({"gpus": [{"name": "NVIDIA H200"}]}, "cuda") == "NVIDIA-H200"


def test_the_table_tells_speed_bounds_and_notes() -> None:
    out = io.StringIO()
    parity = {"losses": [1e-8, 2e-7], "gradient": {"least_cosine": 0.999, "relative_error": 1e-6}}
    show(a_result(parity={**parity, "first_loss": {"luthier": 3e-8}}), Console(file=out, width=160))
    text = out.getvalue()
    assert (
        "limit 40 tokens/s (float32)" in text and "10 to 30" in text and "50.0%" in text and "3.0e-08" in text
    )
    assert "< 2.0" in text and "> 10" in text and "* slow: too slow" in text
    assert "faster than the limit" not in text
    assert "losses differ by at most 2.0e-07" in text and "cosine of a tensor 0.9990000" in text


def test_relative_differences_go_as_far_as_both() -> None:
    assert relative([1.0, 2.2, 9.0], [1.0, 2.0]) == pytest.approx([0.0, 0.1])


def test_gradients_are_compared_as_vectors() -> None:
    truth = {"a": np.array([3.0, 4.0], np.float32), "b": np.array([[1.0, 0.0]], np.float32)}
    turned = {"a": truth["a"], "b": np.array([[0.0, 1.0]], np.float32)}
    assert compare_gradients(truth, truth) == {"least_cosine": pytest.approx(1.0), "relative_error": 0.0}
    found = compare_gradients(turned, truth)
    assert found["least_cosine"] == 0.0 and found["relative_error"] == pytest.approx((2 / 26) ** 0.5)
    with pytest.raises(ValueError, match="gradients of other tensors"):
        compare_gradients({"a": truth["a"]}, truth)


def test_a_profile_adds_up() -> None:
    operations = [
        ("aten::addmm", 2.0, 5),
        ("_Attention", 1.0, 1),
        ("aten::silu", 0.5, 2),
        ("strange", 0.25, 1),
    ]
    found = shares(operations)
    assert found["seconds"] == pytest.approx(sum(found["kinds"].values())) == pytest.approx(3.75)
    assert found["kinds"]["matrix products"] == 2.0 and found["kinds"]["other"] == 0.25
    assert found["longest"][0]["name"] == "aten::addmm"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("aten::bmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::copy_", "copies"),
        ("aten::mul_", "elementwise"),
        ("aten::log_softmax", "elementwise"),
    ],
)
def test_kinds_of_operations(name: str, kind: str) -> None:
    assert kind_of(name) == kind
