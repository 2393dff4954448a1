"""Runs one contestant as a process and watches it from outside: events, time, memory of its process tree."""

import json
import os
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
INTERVAL = 0.2
"""Seconds between looks at the memory; each process's own peak is read from the kernel, so none is missed."""


@dataclass
class Outcome:
    """What one run of a contestant gave."""

    started: float
    events: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0
    """Most memory of the process tree."""
    others: float = 0.0
    """Cores that other processes kept busy meanwhile, on average; 0 where /proc is absent."""
    status: str = "done"
    """done, failed, or stopped (it ran into the limit)."""
    error: str = ""

    def all(self, event: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [found for found in self.events if found["event"] == event]


def run_process(
    command: Sequence[str], spec: Mapping[str, Any], *, limit: float, env: Mapping[str, str] | None = None
) -> Outcome:
    """Runs `command`, hands it `spec`, and kills it with its children after `limit` seconds."""
    environment = {**os.environ, **(env or {})}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [environment.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "src")])
    )
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        started, others = time.monotonic(), busy_elsewhere()
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,  # so that the limit ends its children, too
        )
        outcome = Outcome(started)
        _converse(process, json.dumps(spec), outcome, limit)
        outcome.seconds = time.monotonic() - started
        outcome.others = max(0.0, busy_elsewhere() - others) / outcome.seconds
        errors.seek(0)
        _judge(outcome, process.returncode, errors.read())
    return outcome


def _converse(process: subprocess.Popen[str], spec: str, outcome: Outcome, limit: float) -> None:
    """Sends the specification, then reads events until the end, watching memory and time beside."""
    assert process.stdin and process.stdout
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process, outcome, limit, over), daemon=True)
    watcher.start()
    try:
        with process.stdin as stdin:
            stdin.write(spec)
    except BrokenPipeError:
        pass  # it ended before it read; the exit status tells why
    for line in process.stdout:
        try:
            outcome.events.append(json.loads(line))
        except ValueError:
            outcome.events.append({"event": "note", "time": time.monotonic(), "text": line.strip()})
    process.wait()
    over.set()
    watcher.join()


def _watch(process: subprocess.Popen[str], outcome: Outcome, limit: float, over: threading.Event) -> None:
    start = time.monotonic()
    while not over.wait(INTERVAL):
        outcome.peak_bytes = max(outcome.peak_bytes, tree_memory(process.pid))
        if time.monotonic() - start > limit:
            outcome.status = "stopped"
            os.killpg(process.pid, 9)
            return


def _judge(outcome: Outcome, code: int, errors: str) -> None:
    for event in outcome.all("step"):
        outcome.peak_bytes = max(outcome.peak_bytes, event.get("peak", 0))
    if outcome.status == "stopped":
        outcome.error = "stopped at the time limit"
    elif failed := outcome.all("failed"):
        outcome.status, outcome.error = "failed", failed[-1]["error"]
    elif code != 0 or not outcome.all("done"):
        last = [line for line in errors.strip().splitlines() if line.strip()][-1:]
        outcome.status, outcome.error = "failed", f"exit status {code}: {' '.join(last)[:300]}"


def busy_elsewhere() -> float:
    """Seconds of processor time that went to others than this process and the ones it has run to their end.

    In a virtual machine, also to other machines of the same host while this one had something to do (steal).
    """
    try:
        with open("/proc/stat", encoding="ascii") as stat:
            user, nice, system, _, _, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    mine = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - sum(usage.ru_utime + usage.ru_stime for usage in mine)


def tree_memory(root: int) -> int:
    """Bytes: peak of the root process, plus what its descendants have resident now. 0 where /proc is absent."""
    total = _status_bytes(root, "VmHWM")
    return total + sum(_status_bytes(child, "VmRSS") for child in descendants(root))


def descendants(root: int) -> list[int]:
    """Process ids of children, their children and so on."""
    found, left = [], [root]
    while left:
        pid = left.pop()
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            children = [int(c) for task in tasks for c in (task / "children").read_text().split()]
        except OSError:  # it has ended, or there is no /proc
            continue
        found += children
        left += children
    return found


def _status_bytes(pid: int, name: str) -> int:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(name + ":")) * 1024
    except (OSError, StopIteration):
        return 0
