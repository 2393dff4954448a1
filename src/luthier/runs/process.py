"""Which process wrote something, and whether it still lives: what tells `died` runs and leftover files."""

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

Life = Literal["alive", "gone", "elsewhere"]


@dataclass(frozen=True)
class ProcessMark:
    """A process that can be told from every other: its id, when it began, and a short hash of where it ran.

    A process id alone is not enough: ids are given again, and a folder on a shared disk may belong to a
    process of another machine or container, which must not be called dead because it is not seen here.
    `place` changes with every boot and names nobody.
    """

    pid: int
    began: int
    place: str

    @classmethod
    def current(cls) -> Self:
        """The mark of the process that asks."""
        pid = os.getpid()
        return cls(pid, _began(pid) or 0, _place())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `str(mark)` back. Raises ValueError for anything else."""
        pid, began, place = text.split("-")
        return cls(int(pid), int(began), place)

    def __str__(self) -> str:
        return f"{self.pid}-{self.began}-{self.place}"

    def life(self) -> Life:
        """Whether the process is `alive` or `gone`; `elsewhere` where that cannot be seen from here."""
        if self.place != _place():
            return "elsewhere"
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return "gone"
        except PermissionError:
            pass  # it exists and belongs to somebody else
        began = _began(self.pid)
        if began is None:
            return "alive" if not Path("/proc/self/stat").exists() else "gone"
        return "alive" if began == self.began else "gone"


def _began(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None where it is a zombie or cannot be read."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The command's name stands in parentheses and may hold spaces and parentheses of its own.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _place() -> str:
    """Short hash of this boot of this machine and this process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        boot += f":{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        boot = platform.node()
    return hashlib.sha256(boot.encode()).hexdigest()[:10]
