"""Reads how much memory is free and in use where training computes, and the most that was in use during a pass."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from luthier.memory import free_memory, heap, resident_bytes

PAUSE = 0.004  # seconds between two looks at the host's heap; a look takes about 20 microseconds


@dataclass
class Peak:
    """The most that was in use while it was watched."""

    bytes: int = 0
    exact: bool = True
    """False where it may have been less: then `bytes` is an upper bound."""


class Gauge(Protocol):
    """What the planner asks about a device."""

    def free(self) -> int:
        """Bytes that this process could still take."""
        ...

    def in_use(self) -> int:
        """Bytes that it has taken and needs."""
        ...

    @contextmanager
    def watch(self) -> Iterator[Peak]:
        """Follows what is in use; the result is filled in at the end."""
        ...


class HostGauge:
    """The RAM of this machine.

    Args:
        limit: most bytes for this process and its children; None: what is there.
        processes: how many training processes share the machine; each plans with its share of what is free.
    """

    def __init__(self, limit: int | None = None, processes: int = 1):
        self.limit, self.processes = limit, processes

    def free(self) -> int:
        return min(free_memory(torch.device("cpu")) // self.processes, self._within_limit())

    def _within_limit(self) -> int:
        return free_memory(torch.device("cpu"), self.limit)

    def in_use(self) -> int:
        return heap().used or resident_bytes()

    @contextmanager
    def watch(self) -> Iterator[Peak]:
        """A thread looks every few milliseconds: the kernel's own high-water mark would count memory that the
        allocator keeps unused, and cannot be set back without changing what others read."""
        peak, done = Peak(self.in_use()), threading.Event()

        def look() -> None:
            while not done.wait(PAUSE):
                peak.bytes = max(peak.bytes, self.in_use())

        watcher = threading.Thread(target=look, name="memory", daemon=True)
        watcher.start()
        try:
            yield peak
        finally:
            done.set()
            watcher.join()


class GpuGauge:
    """The memory of one GPU."""

    def __init__(self, device: torch.device, limit: int | None = None):
        self.device, self.limit = device, limit

    def free(self) -> int:
        return free_memory(self.device, self.limit)

    def in_use(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    @contextmanager
    def watch(self) -> Iterator[Peak]:
        """By torch's high-water mark, which is not set back: where it did not rise it is an upper bound."""
        before = torch.cuda.max_memory_allocated(self.device)
        peak = Peak()
        try:
            yield peak
        finally:
            peak.bytes = torch.cuda.max_memory_allocated(self.device)
            peak.exact = peak.bytes > before
