"""The harness and a contestant as two processes: events, noise, failures, limits, memory of children."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.contest import luthier
from bench.protocol import Clock, EnoughError
from bench.rows import Rows
from bench.runner import Task
from bench.shapes import SHAPES
from bench.watch import ROOT, Outcome, descendants, run_process, tree_memory
from bench.workloads import WORKLOADS

LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")


def play(body: str, limit: float = 30.0, **spec: Any) -> Outcome:
    """Runs a contestant whose `run(spec, wire)` has this body."""
    lines = "\n".join("    " + line for line in body.splitlines())
    code = f"import os, sys, time\nfrom bench.protocol import *\ndef run(spec, wire):\n{lines}\nserve(run)"
    return run_process([sys.executable, "-c", code], spec, limit=limit)


def test_events_come_through_whatever_is_printed() -> None:
    outcome = play(
        'print("noise")\nos.system("echo more noise")\nwire.send("result", value=spec["x"])', x=[1, "ü"]
    )
    assert outcome.status == "done"
    assert [event["event"] for event in outcome.events] == ["result", "done"]
    assert outcome.all("result")[0]["value"] == [1, "ü"]


def test_times_are_on_the_clock_of_the_harness() -> None:
    before = time.monotonic()
    outcome = play('wire.send("loaded")')
    assert before <= outcome.started <= outcome.all("loaded")[0]["time"] <= time.monotonic()


def test_a_step_tells_memory_and_page_faults() -> None:
    outcome = play("data = bytearray(300_000_000)\nwire.step(loss=1.0)")
    (step,) = outcome.all("step")
    assert step["loss"] == 1.0 and step["faults"] > 0
    assert 300e6 < step["peak"] <= outcome.peak_bytes < 2e9


def test_an_exception_is_told_in_its_own_words() -> None:
    outcome = play('raise ValueError("no such thing")')
    assert outcome.status == "failed" and outcome.error == "ValueError: no such thing"


def test_a_process_that_dies_is_a_failure_with_its_last_words() -> None:
    outcome = play('print("out of luck", file=sys.stderr, flush=True)\nos._exit(3)')
    assert outcome.status == "failed" and outcome.error == "exit status 3: out of luck"


def ended(pid: int) -> bool:
    try:
        return "Z (zombie)" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    limit = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True


def test_the_limit_ends_a_process_and_its_children() -> None:
    body = 'import subprocess\nchild = subprocess.Popen(["sleep", "60"])\nwire.send("note", text=str(child.pid))\n'
    start = time.monotonic()
    outcome = play(body + "child.wait()", limit=2.0)
    assert outcome.status == "stopped" and outcome.error == "stopped at the time limit"
    assert time.monotonic() - start < 20
    (note,) = outcome.all("note")
    if Path("/proc/self/task").exists():
        # a signal is sent at once and obeyed a little later
        assert within(10.0, lambda: ended(int(note["text"])))


@LINUX
def test_memory_of_children_counts() -> None:
    child = "import time; data = bytearray(200_000_000); time.sleep(2)"
    outcome = play(f"import subprocess\nsubprocess.run([sys.executable, '-c', {child!r}])")
    assert 200e6 < outcome.peak_bytes < 2e9


@LINUX
def test_descendants_of_nobody() -> None:
    assert descendants(2**22 + 1) == [] and tree_memory(2**22 + 1) == 0


def test_the_clock_stops_by_steps_and_by_time() -> None:
    clock = Clock({"seconds": 1e6, "max_steps": 2})
    assert [clock.enough(), clock.enough()] == [False, True]
    clock = Clock({"seconds": 0.0, "max_steps": 9})
    with pytest.raises(EnoughError):
        clock.check()
    assert clock.enough()
    clock.check()  # after a step it never ends one


def test_ending_in_the_middle_of_a_step_is_no_failure() -> None:
    outcome = play('wire.send("micro", tokens=3)\nClock(spec).check()', seconds=0.0, max_steps=1)
    assert outcome.status == "done" and [e["event"] for e in outcome.events] == ["micro", "note", "done"]


def test_specifications_are_plain_json() -> None:
    workload, rows = WORKLOADS["A"], Rows(np.arange(9, dtype=np.int32), np.array([[4, 5]]))
    assert workload.cpu is not None
    task = Task(workload, workload.cpu, SHAPES["tiny"], "cpu", 9, Path("m"), rows, Path("r"), 1.0)
    spec = task.spec(luthier(workload), extra=1)
    assert json.loads(json.dumps(spec)) == spec and spec["samples"] == 16 and spec["extra"] == 1


@LINUX
def test_what_others_compute_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        beside = play("end = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass").others
        other.kill()
    assert beside > 0.2  # on a full machine it gets less of a core, but then all the others count as well


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_nothing_is_left_behind_when_the_harness_is_killed() -> None:
    contestant = "import time\nfrom bench.protocol import serve\n"
    contestant += "serve(lambda spec, wire: (wire.send('loaded'), time.sleep(60)))"
    harness = "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', sys.argv[1]], "
    harness += "stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)\n"
    harness += "child.stdin.write(b'{}')\nchild.stdin.close()\nchild.stdout.readline()\n"
    harness += "print(child.pid, flush=True)\nchild.wait()"
    with subprocess.Popen(
        [sys.executable, "-c", harness, contestant],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be collected does not."""
    try:
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
