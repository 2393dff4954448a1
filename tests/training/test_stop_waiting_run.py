"""A run that waits for rows stops at once when it is asked to, with a whole checkpoint."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.config.tree import Config
from luthier.errors import DataError, Interrupted
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import read_metrics
from tiny_runs import tiny_config, write_chats

NO_EVAL = {"every": None, "samples": 0}


def test_a_run_over_a_pipe_that_stands_still_stops_and_saves(tmp_path: Path) -> None:
    rows = write_chats(tmp_path / "rows.jsonl", 30).read_bytes()
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)
    asked: list[float] = []
    run = tmp_path / "runs" / "waiting"

    def ask() -> None:
        """Sends the signal when no step has been made for a while."""
        steps, since = -1, time.monotonic()
        while time.monotonic() - since < 3.0 or steps < 1:
            time.sleep(0.1)
            file = run / "metrics.jsonl"
            now = sum(row["kind"] == "train" for row in read_metrics(file)) if file.exists() else 0
            if now != steps:
                steps, since = now, time.monotonic()
        asked.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=os.write, args=(held, rows)).start()
    asker = threading.Thread(target=ask)
    asker.start()
    data = {"path": str(pipe), "eval_path": None, "window_rows": 9}
    config = tiny_config(
        tmp_path, "waiting", data=data, train={"steps": 100}, checkpoint={"every": None}, eval=NO_EVAL
    )
    with pytest.raises(Interrupted, match=r"SIGTERM: stopped after step \d+ of 100 and saved it"):
        luthier.train(config, say=lambda text: None)
    assert time.monotonic() - asked[0] < 20
    asker.join()
    os.close(held)
    found = RunFolder.open(run)
    assert found.status().state == "interrupted"
    assert found.saved_steps() == [found.status().step or 0] != [0]


def test_rows_that_fail_after_some_steps_cost_no_step(tmp_path: Path) -> None:
    """Too many broken rows, met late: what was learned is saved, and goes on with another setting."""
    rows = write_chats(tmp_path / "rows.jsonl", 40).read_text().splitlines(keepends=True)
    file = tmp_path / "late.jsonl"
    file.write_text("".join([*rows[:30], *["{broken\n"] * 5, *rows[30:]]))
    data = {"path": str(file), "eval_path": None, "streaming": True, "window_rows": 9, "workers": 0}

    def config(name: str, **more: Any) -> Config:
        return tiny_config(
            tmp_path,
            name,
            data=data | more,
            train={"epochs": 1},
            checkpoint={"every": None},
            eval=NO_EVAL,
        )

    told: list[str] = []
    with pytest.raises(DataError, match=r"\d of 36 rows .* cannot be used"):
        luthier.train(config("late"), say=told.append)
    run = RunFolder.open(tmp_path / "runs" / "late")
    (step,) = run.saved_steps()
    assert step > 2 and f"step {step} is saved; --resume goes on from there" in told
    again = config("late", max_drop_fraction=0.2)
    luthier.train(again, resume=True, allow_changes=True, say=told.append)
    luthier.train(config("straight", max_drop_fraction=0.2), say=told.append)
    losses = [
        [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "runs" / name / "metrics.jsonl")]
        for name in ("late", "straight")
    ]
    assert losses[0] == losses[1] and len(losses[0]) > step
