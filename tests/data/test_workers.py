"""Processes at work: they answer, fail in words, and never make anybody wait without end or outlive them."""

import os
import subprocess
import sys
import time
from typing import Any

import pytest

from luthier.data.pipeline import Recipe
from luthier.data.workers import EncoderPool, Worker
from luthier.errors import DataError, RunError
from worker_parts import start


def ended(worker: Worker) -> bool:
    return worker.process.poll() is not None


def test_a_process_answers_tells_and_refuses_in_its_own_words() -> None:
    worker = start()
    try:
        for number in range(3):
            worker.request(("say", number), "rows")
            assert worker.answer() == f"made: {number}"
        told: list[int] = []
        worker.request(("tell", 4), "rows")
        assert worker.answer(told.append) == "made: 4" and told == [0, 1, 2, 3]
        worker.request(("refuse", "a.jsonl is broken"), "rows")
        with pytest.raises(DataError, match=r"^made: a\.jsonl is broken$"):
            worker.answer()
        worker.request(("fail", "by nought"), "a.jsonl:1 to a.jsonl:9")
        with pytest.raises(RunError, match=r"(?s)^a\.jsonl:1 to a\.jsonl:9: .*ZeroDivisionError: by nought"):
            worker.answer()
        worker.request(("say", "still here"), "rows")
        assert worker.answer() == "made: still here"
    finally:
        worker.close()
    assert ended(worker)


def test_a_process_that_dies_or_hangs_is_told_with_its_rows() -> None:
    worker = start()
    worker.request(("die", 0), "a.jsonl:1 to a.jsonl:256")
    with pytest.raises(RunError) as caught:
        worker.answer()
    for part in (
        "a.jsonl:1 to a.jsonl:256",
        "ended by signal 9, as happens when memory runs out",
        "data.workers: 0",
    ):
        assert part in str(caught.value)
    assert ended(worker)
    with pytest.raises(RunError, match="signal 9"):
        worker.request(("say", 1), "more rows")
    worker = start()
    worker.patience = 1.0
    worker.request(("hang", 0), "a.jsonl:257 to a.jsonl:512")
    with pytest.raises(RunError, match=r"a\.jsonl:257 to a\.jsonl:512: .* not answered for 1 seconds"):
        worker.answer()
    assert ended(worker)


ORPHAN = """
import os, sys, time
sys.path[:0] = PATHS
from worker_parts import start
worker = start()
worker.request(("WHAT", 10**12), "rows")
print(worker.process.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("busy_with", ["tell", "hang"])
def test_no_process_outlives_the_one_that_asked(busy_with: str) -> None:
    paths = [str(path) for path in sys.path if path]
    paths.append(os.path.dirname(os.path.dirname(__file__)))
    asker = subprocess.Popen(
        [sys.executable, "-c", ORPHAN.replace("PATHS", repr(paths)).replace("WHAT", busy_with)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert asker.stdout is not None
    pid = int(asker.stdout.readline())
    asker.kill()
    asker.wait()
    deadline = time.monotonic() + 30
    while _is_running(pid):
        assert time.monotonic() < deadline, "the process works on for nobody"
        time.sleep(0.1)


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_processes_that_cannot_start_are_told_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Worker] = []
    original = Worker.__init__

    def watched(self: Worker, *arguments: Any, **options: Any) -> None:
        made.append(self)
        original(self, *arguments, **options)

    monkeypatch.setattr(Worker, "__init__", watched)
    with pytest.raises(DataError, match="NoneType is not a fast one"):
        EncoderPool(Recipe(None, None, None), 2)  # pyright: ignore
    assert len(made) == 2 and all(map(ended, made))
