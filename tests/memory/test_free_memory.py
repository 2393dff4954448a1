"""Free memory is the least that the kernel, the control groups and the config leave."""

import os
from pathlib import Path

import pytest
import torch

from luthier import memory
from luthier.memory import available, cgroup_room, free_memory, free_on_host, heap, resident_bytes, tree_bytes

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def proc(root: Path, cgroup: str = "", available_kb: int = 8 * 2**20) -> Path:
    return write(
        root / "proc",
        {
            "meminfo": f"MemTotal: 16777216 kB\nMemFree: 1000 kB\nMemAvailable: {available_kb} kB\n",
            "self/cgroup": cgroup,
        },
    )


def test_without_control_groups_it_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert free_on_host(proc(tmp_path), tmp_path / "none") == 8 * GIB


@pytest.mark.parametrize("root", ["", "unified"])
def test_version_2_counts_every_group_above_and_lets_page_cache_go(tmp_path: Path, root: str) -> None:
    groups = write(
        tmp_path / "cgroup" / root,
        {
            "job/memory.max": str(4 * GIB),
            "job/memory.current": str(3 * GIB),
            "job/memory.stat": f"anon {2 * GIB}\ninactive_file {GIB}\n",
            "job/task/memory.max": "max\n",
            "job/task/memory.current": str(3 * GIB),
        },
    )
    assert groups.exists()
    folder = proc(tmp_path, "0::/job/task\n")
    assert list(cgroup_room(folder, tmp_path / "cgroup")) == [2 * GIB]
    assert free_on_host(folder, tmp_path / "cgroup") == 2 * GIB


def test_version_1_is_read_under_its_own_names(tmp_path: Path) -> None:
    groups = write(
        tmp_path / "cgroup",
        {
            "memory/box/memory.limit_in_bytes": str(2 * GIB),
            "memory/box/memory.usage_in_bytes": str(GIB),
            "memory/box/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB // 2}\n",
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": str(3 * GIB),
        },
    )
    folder = proc(tmp_path, "5:cpu,cpuacct:/box\n4:memory:/box\n")
    assert free_on_host(folder, groups) == GIB + GIB // 2


def test_in_a_container_the_group_s_own_folder_is_the_root(tmp_path: Path) -> None:
    groups = write(
        tmp_path / "cgroup", {"memory.max": str(3 * GIB), "memory.current": str(GIB), "memory.stat": ""}
    )
    folder = proc(tmp_path, "0::/../../docker/abc\n")
    assert free_on_host(folder, groups) == 2 * GIB


def test_an_overfull_group_leaves_nothing_and_never_less(tmp_path: Path) -> None:
    groups = write(tmp_path / "cgroup", {"memory.max": "10", "memory.current": "30"})
    assert free_on_host(proc(tmp_path, "0::/\n"), groups) == 0


def test_without_proc_half_of_the_machine_counts(tmp_path: Path) -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available(tmp_path) == whole // 2


def test_a_tree_is_a_process_and_all_below_it_whatever_their_names(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    folder = write(
        tmp_path,
        {
            "10/stat": "10 (run (a) b) S 1 10",
            "10/statm": "99 5 0",
            "11/stat": "11 (worker) S 10 10",
            "11/statm": "99 7 0",
            "12/stat": "12 (w) S 11 10",
            "12/statm": "99 1 0",
            "13/stat": "13 (other) S 1 13",
            "13/statm": "99 50 0",
            "14/stat": "",
        },
    )
    assert tree_bytes(folder, 10) == 13 * page
    assert resident_bytes(folder, 14) == 0


def test_a_limit_counts_what_the_process_holds_already() -> None:
    cpu = torch.device("cpu")
    assert free_memory(cpu, limit=1) == 0
    room = free_memory(cpu, limit=tree_bytes() + GIB)
    assert abs(room - GIB - heap().idle) < 64 * 2**20
    assert free_memory(cpu) <= free_on_host() + heap().idle + 64 * 2**20


def test_the_heap_knows_what_is_handed_out() -> None:
    before = heap().used
    if not before:
        pytest.skip("this C library does not say what its heap holds")
    block = torch.ones(2**24)
    assert 60 << 20 < heap().used - before < 80 << 20
    del block
    assert heap().used - before < 8 << 20


def test_other_c_libraries_give_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    assert heap() == memory.Heap(0, 0)


class FakeCuda:
    """A GPU of 10 GiB of which others hold 4; torch has reserved 3 and uses 2 of these."""

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 3 * GIB, 10 * GIB

    def memory_allocated(self, device: torch.device) -> int:
        return 2 * GIB

    def memory_reserved(self, device: torch.device) -> int:
        return 3 * GIB


def test_on_a_gpu_the_cache_of_torch_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    for name in ("mem_get_info", "memory_allocated", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    device = torch.device("cuda", 0)
    assert free_memory(device) == 4 * GIB
    assert free_memory(device, limit=5 * GIB) == 3 * GIB
    assert free_memory(device, limit=GIB) == 0
