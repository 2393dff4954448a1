"""How the harness and a contestant talk: one JSON object in on stdin, JSON lines out on stdout.

A contestant is a module with `run(spec, wire)`. Whatever libraries print goes to stderr. Times are those of the
system's monotonic clock, which all processes share, so that the harness can tell the time since the start.

Events: `loaded` (ready to train), `micro` (a micro-batch forward and backward: rows, tokens, learned), `step`
(an optimizer step: loss, rows, tokens, learned, page faults, peak memory), `note`, `result` (anything else
that was measured), `done`, `failed`.
"""

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

Spec = dict[str, Any]


class Wire:
    """The contestant's end."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def send(self, event: str, **facts: Any) -> None:
        """One event, now."""
        self._stream.write(json.dumps({"event": event, "time": time.monotonic(), **facts}) + "\n")
        self._stream.flush()

    def step(self, **facts: Any) -> None:
        """An optimizer step, with what the process has used so far."""
        self.send(
            "step", faults=resource.getrusage(resource.RUSAGE_SELF).ru_minflt, peak=peak_memory(), **facts
        )


def peak_memory() -> int:
    """Bytes: the most memory this process has had resident."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def serve(run: Callable[[Spec, Wire], None]) -> None:
    """Runs a contestant: reads its specification, and keeps its libraries' output out of the events."""
    die_with_harness()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    wire = Wire(events)
    spec: Spec = json.loads(sys.stdin.read())
    try:
        cap_gpu(spec.get("memory_cap"))
        run(spec, wire)
    except EnoughError:
        wire.send("note", text="ended in the middle of a step: its time was over")
    except Exception as error:
        traceback.print_exc()
        wire.send("failed", error=f"{type(error).__name__}: {str(error)[:500]}")
        sys.exit(1)
    wire.send("done")


def die_with_harness() -> None:
    """Ends this process when the harness ends, however that came about: what is left behind would disturb the next
    measurement. Linux only; elsewhere it ends at its next event, for nobody reads it."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


def cap_gpu(gibibytes: float | None) -> None:
    """Lets this process have no more of the GPU's memory than this."""
    if gibibytes is None:
        return
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gibibytes * 2**30 / total))


class EnoughError(Exception):
    """Ends a contestant in the middle of a step that takes far longer than it was given."""


class Clock:
    """Says when a contestant has trained long enough."""

    def __init__(self, spec: Spec):
        self._seconds: float = spec["seconds"]
        self._most: int = spec["max_steps"]
        self._start = time.monotonic()
        self._steps = 0

    def enough(self) -> bool:
        """Called after each step: no time left, or no steps. The first step warms up, so a second follows it
        unless the first alone took all the time."""
        self._steps += 1
        return self._steps >= self._most or time.monotonic() - self._start >= self._seconds

    def check(self) -> None:
        """Called after each micro-batch: ends a first step that takes more than twice the time."""
        if self._steps == 0 and time.monotonic() - self._start >= 2 * self._seconds:
            raise EnoughError
