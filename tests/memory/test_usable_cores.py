"""How many cores a process may use: as its affinity and its control groups say, in both versions of them."""

import os
from pathlib import Path

import pytest
import torch

from luthier.cores import granted, usable_cores
from luthier.training import build


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_tightest_group_counts(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", {"self/cgroup": "0::/batch/job\n"})
    files = {
        "cpu.max": "max 100000\n",
        "batch/cpu.max": "250000 100000\n",
        "batch/job/cpu.max": "800000 100000\n",
    }
    assert list(granted(proc, write(tmp_path / "groups", files))) == [8.0, 2.5]


def test_groups_of_version_1(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", {"self/cgroup": "4:cpu,cpuacct:/box\n3:memory:/box\n"})
    groups = write(
        tmp_path / "groups",
        {
            "cpu/box/cpu.cfs_quota_us": "150000\n",
            "cpu/box/cpu.cfs_period_us": "100000\n",
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert list(granted(proc, groups)) == [1.5]


@pytest.mark.parametrize(
    ("cpu_max", "expected"), [("150000 100000", 2), ("5000 100000", 1), ("max 100000", 8)]
)
def test_a_quota_and_the_affinity_bound_the_cores(
    tmp_path: Path, cpu_max: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    proc = write(tmp_path / "proc", {"self/cgroup": "0::/\n"})
    assert usable_cores(proc, write(tmp_path / "groups", {"cpu.max": cpu_max})) == expected


def test_without_groups_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert usable_cores(tmp_path, tmp_path) == 2


@pytest.mark.parametrize(("chosen", "expected"), [(None, 2), ("7", 7)])
def test_a_run_takes_no_more_threads_unless_they_are_chosen(
    chosen: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "usable_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(7)
        build._set_threads(None)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
