"""How many cores this process may use: fewer than the machine has, where a container or a batch system says so."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from luthier.memory import CGROUPS, PROC, control_groups


def usable_cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """The least of the cores that it may be put on and of what its control groups grant; 1 at least.

    A grant of time is rounded up: 1.5 cores' worth lets two threads run, though not all the time.
    """
    placed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([placed, *(math.ceil(share) for share in granted(proc, cgroups))]))


def granted(proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[float]:
    """For every control group above this process that limits processor time: how many cores' worth. Versions 1, 2."""
    for version, folder in control_groups("cpu", proc, cgroups):
        if version == 2:
            fields = _words(folder / "cpu.max")
        else:
            fields = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(fields) == 2 and all(field.isdigit() and int(field) for field in fields):  # else "max" or -1
            yield int(fields[0]) / int(fields[1])


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
