"""A stream over two processes: the losses of one, although both were killed in the midst and went on."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.config.dump import dump_config
from luthier.config.tree import Config
from luthier.runs.metrics import read_metrics
from resuming import KILLED
from tiny_runs import tiny_config, write_chats


def on_two_ranks(config: Config, stop_after: int, *resume: str) -> list[int]:
    """Runs it on both; the status of each. Both end themselves after that step, if there is one."""
    file = Path(config.run.root).parent / f"{config.run.name}.yaml"
    file.write_text(dump_config(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in "01":
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **place, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", KILLED, str(file), str(stop_after), *resume]
        processes.append(subprocess.Popen(command, env=environment))
    return [process.wait(240) for process in processes]


def losses_of(run: Path) -> list[tuple[int, float]]:
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
    return [(row["step"], row["loss"]) for row in rows]


def test_two_processes_killed_in_a_stream_go_on_to_the_losses_of_one(tmp_path: Path) -> None:
    write_chats(tmp_path / "rows.jsonl", 60)
    broken = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    broken[20] = "{broken\n"
    broken[31] = broken[30]  # which cleaning remembers over the edge of a window and the end of a process
    (tmp_path / "rows.jsonl").write_text("".join(broken))
    options: dict[str, Any] = {
        "data": {
            "path": str(tmp_path / "rows.jsonl"),
            "eval_path": None,
            "streaming": True,
            "window_rows": 31,
            "workers": 1,
            "max_drop_fraction": 0.1,
            "clean": {"exact_duplicates": True},
        },
        "lora": {"rank": 4, "dropout": 0.0},
        "eval": {"every": None, "samples": 0},
        "checkpoint": {"every": 2},
    }
    one = luthier.train(tiny_config(tmp_path, "one", **options), say=lambda text: None).folder
    two = tiny_config(tmp_path, "two", **options)
    assert on_two_ranks(two, 5) == [-signal.SIGKILL] * 2
    assert on_two_ranks(two, 0, "resume") == [0, 0]
    expected, found = losses_of(one), losses_of(tmp_path / "runs" / "two")
    assert [step for step, _ in found] == [step for step, _ in expected] and len(found) > 6
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-4)
    ledgers = [
        json.loads((folder / "ledger.json").read_text())["train"]
        for folder in (one, tmp_path / "runs" / "two")
    ]
    assert ledgers[0] == ledgers[1]
    assert (ledgers[0]["read"], ledgers[0]["kept"], ledgers[0]["set_aside"]) == (60, 58, 1)
