"""How much memory there is left to take, on the host and on a GPU. All sizes are bytes.

On the host the truth is the smallest of three: what the kernel could hand out, what the control groups of this
process (containers, batch systems) still allow, and what `memory.limit` leaves. The folders of /proc and
/sys/fs/cgroup can be given, so that all of it can be tested. torch is imported for GPUs only.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Heap:
    """What the C library's allocator holds for this process."""

    used: int
    """Bytes handed out and not freed."""
    idle: int
    """Bytes freed but kept: the next allocations take from them before they ask the kernel."""


def free_memory(device: "torch.device", limit: int | None = None) -> int:
    """Bytes that this process could still take on `device` without pushing anything out.

    What its own allocator keeps unused counts as free. `limit` caps what the process may hold in all: with its
    children on the host, by itself on a GPU.
    """
    if device.type == "cuda":
        return _free_on_gpu(device, limit)
    idle = heap().idle
    free = free_on_host() + idle
    if limit is not None:
        free = min(free, limit - tree_bytes() + idle)
    return max(0, free)


def _free_on_gpu(device: "torch.device", limit: int | None) -> int:
    """Free on the GPU, and what torch has reserved there without using it."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    free += torch.cuda.memory_reserved(device) - used
    return max(0, free if limit is None else min(free, limit - used))


def free_on_host(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes of RAM that can be handed out before the kernel swaps or kills: machine and control groups."""
    return max(0, min([available(proc), *cgroup_room(proc, cgroups)]))


def available(proc: Path = PROC) -> int:
    """What the kernel reckons it can hand out without swapping (MemAvailable).

    Where there is no /proc, as on macOS, half of the machine's memory is taken for free.
    """
    fields = _fields(proc / "meminfo")
    if "MemAvailable:" in fields:
        return fields["MemAvailable:"] * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def cgroup_room(proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[int]:
    """For every control group above this process that limits memory: limit less use. Versions 1 and 2.

    Page cache counts as use, but the part that nobody reads lately is given up first, so it counts as room.
    """
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }
    for version, folder in control_groups("memory", proc, cgroups):
        room = _room(folder, *names[version])
        if room is not None:
            yield room


def control_groups(controller: str, proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[tuple[int, Path]]:
    """The folder of every control group above this process that may limit something, with its version, 1 or 2."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            version, roots = 2, (cgroups, cgroups / "unified")
        elif controller in controllers.split(","):
            version, roots = 1, (cgroups / controller,)
        else:
            continue
        for root in roots:
            for folder in _upwards(root, path):
                yield version, folder


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a group and those of all above it; inside a container only the root may be there."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return [root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _room(folder: Path, limit_name: str, usage_name: str, reclaimable: str) -> int | None:
    limit, usage = _text(folder / limit_name).strip(), _text(folder / usage_name).strip()
    if not (limit.isdigit() and usage.isdigit()):  # "max", or no such file
        return None
    return int(limit) - int(usage) + _fields(folder / "memory.stat").get(reclaimable, 0)


def tree_bytes(proc: Path = PROC, root: int | None = None) -> int:
    """Resident bytes of a process and all its descendants; of this one if `root` is absent."""
    root = os.getpid() if root is None else root
    children: dict[int, list[int]] = {}
    for stat in proc.glob("[0-9]*/stat"):
        text = _text(stat)
        if ")" in text:  # the name in parentheses may hold anything; the parent is the second field after it
            children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        total += resident_bytes(proc, process)
        waiting += children.get(process, [])
    return total


def resident_bytes(proc: Path = PROC, process: int | None = None) -> int:
    """Bytes of RAM that one process holds; 0 where that cannot be read or it has ended."""
    fields = _text(proc / str(process or os.getpid()) / "statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


class _Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()  # noqa: SIM905
    )


def heap() -> Heap:
    """What the allocator holds: glibc from 2.33 on; zeros where the C library does not say."""
    if platform.libc_ver()[0] != "glibc":
        return Heap(0, 0)
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return Heap(0, 0)
    mallinfo.restype = _Mallinfo
    info = mallinfo()
    return Heap(info.uordblks + info.hblkhd, info.fordblks)


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of `name number` lines."""
    found = {}
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[1].isdigit():
            found[words[0]] = int(words[1])
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
