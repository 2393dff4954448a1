"""A run's folder: made once, opened often, taken over only from the dead."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import ConfigError, RunError
from luthier.runs import atomic
from luthier.runs.atomic import atomic_folder
from luthier.runs.folder import NAME, RunFolder, default_name
from luthier.runs.process import ProcessMark
from luthier.runs.status import RunStatus, read_status

CONFIG = "model: {name: demo:tiny}\nmethod: {name: sft}\n"


def test_a_new_run_describes_itself(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "deep" / "runs", "first", config_yaml=CONFIG)
    assert folder.config.read_text() == CONFIG
    assert folder.name == "first"
    status = folder.status()
    assert (status.state, status.step, status.pid, status.is_alive()) == ("running", 0, os.getpid(), True)
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "status.json",
    ]
    assert RunFolder.open(folder.path) == folder


def test_an_empty_folder_is_taken_and_a_full_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path, "empty", config_yaml=CONFIG)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"exists and is not empty.*Set run\.name to another.*--resume"):
        RunFolder.create(tmp_path, "full", config_yaml=CONFIG)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "-x", "a b", "x" * 129, "a\n"])
def test_names_that_are_no_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name is .*Change run\.name"):
        RunFolder.create(tmp_path, name, config_yaml=CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_root_or_run_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for root in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ConfigError, match=r"run\.root is .*file is a file.*Change run\.root"):
            RunFolder.create(root, "a", config_yaml=CONFIG)
    with pytest.raises(ConfigError, match=r"file is a file, so the run cannot.*Change run\.name"):
        RunFolder.create(tmp_path, "file", config_yaml=CONFIG)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.ENOSPC, RunError, "is full"),
        (errno.EROFS, ConfigError, "read-only"),
        (errno.EACCES, ConfigError, "permission denied"),
    ],
)
def test_a_disk_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], says: str
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "fsync", refuse)
    with pytest.raises(kind, match=says):
        RunFolder.create(tmp_path / "runs", "a", config_yaml=CONFIG)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_disk_that_is_really_full_or_read_only(small_disk: Path, freeze: Callable[[], None]) -> None:
    with pytest.raises(RunError, match="is full"):
        RunFolder.create(small_disk, "a", config_yaml="x" * (2 << 20))
    assert list(small_disk.iterdir()) == []
    kept = RunFolder.create(small_disk, "kept", config_yaml=CONFIG)
    freeze()
    with pytest.raises(ConfigError, match="read-only"):
        RunFolder.create(small_disk, "a", config_yaml=CONFIG)
    assert RunFolder.open(kept.path).status().state == "running"
    with pytest.raises(RunError, match="read-only"):
        kept.set_status("done")


def test_of_two_that_want_a_name_one_gets_it(tmp_path: Path) -> None:
    """Both look, both find nothing, both write: the rename decides."""
    script = (
        "import sys; from luthier.runs.folder import RunFolder; sys.stdin.readline(); "
        "RunFolder.create(sys.argv[1], 'same', config_yaml=sys.argv[2])"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), text],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for text in ("one: 1", "two: 2")
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate()[1] for racer in racers]
    assert sorted(racer.returncode for racer in racers) == [0, 1]
    winner = next(index for index, racer in enumerate(racers) if racer.returncode == 0)
    assert "exists and is not empty" in said[1 - winner]
    assert (tmp_path / "same" / "config.yaml").read_text() == ["one: 1", "two: 2"][winner]
    assert [path.name for path in tmp_path.iterdir()] == ["same"]


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder, so there is no run in it"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"holds neither config\.yaml nor status\.json"):
        RunFolder.open(tmp_path)


def test_status_moves_and_keeps_what_is_not_given(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a", config_yaml=CONFIG)
    folder.set_status("running", step=3, num_steps=10)
    folder.set_status("failed", message="the loss is not finite")
    status = folder.status()
    assert (status.state, status.step, status.num_steps) == ("failed", 3, 10)
    assert status.message == "the loss is not finite"
    assert status.ended is not None and status.seconds() == status.ended - status.started


def test_time_between_sessions_is_not_work(tmp_path: Path) -> None:
    status = RunStatus(
        "interrupted", started=0.0, taken_up=100.0, seconds_before=50.0, updated=130.0, ended=130.0
    )
    assert status.seconds() == 80.0
    resumed = status.again()
    assert resumed.seconds_before == 80.0 and resumed.started == 0.0
    assert 80.0 <= resumed.seconds() < 90.0


def test_a_status_that_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    with pytest.raises(RunError, match=r"is missing: .* is not the folder of a run"):
        read_status(path)
    for text, says in [
        ("{", "cannot be read"),
        ("[]", "does not hold the state of a run"),
        ('{"state": "asleep"}', r"does not hold the state of a run \(running, done, failed, interrupted\)"),
        ('{"state": "done", "step": "three"}', "`step` is 'three', which is not what a run writes"),
    ]:
        path.write_text(text)
        with pytest.raises(RunError, match=says):
            read_status(path)


def test_a_living_run_is_not_taken_over(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a", config_yaml=CONFIG)
    script = (
        "import sys; from luthier.runs.folder import RunFolder; "
        "RunFolder.create(sys.argv[1], 'b', config_yaml='x: 1'); "
        "print('made', flush=True); sys.stdin.readline()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "made\n"
    try:
        with pytest.raises(
            ConfigError, match=rf"worked on by process {other.pid}.*under another `run\.name`"
        ):
            RunFolder.resume(tmp_path / "b")
    finally:
        other.kill()
        other.communicate()
    assert RunFolder.resume(tmp_path / "b").status().pid == os.getpid()
    assert RunFolder.resume(folder.path) == folder, "a process may take up its own run"


def test_resume_clears_leftovers_and_brings_back_checkpoints(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a", config_yaml=CONFIG)
    with atomic_folder(folder.checkpoint(10)) as place:
        (place / "weights").write_text("10")
    folder.set_status("interrupted", step=10)
    here = ProcessMark.current()
    elsewhere = ProcessMark(here.pid, here.began, "0" * 10)
    os.rename(folder.checkpoint(10), folder.checkpoints / f".step-10.{elsewhere}.00000000.old")
    (folder.checkpoints / f".step-10.{elsewhere}.11111111.partial").mkdir()
    (folder.path / f".status.json.{elsewhere}.22222222.partial").write_text("{")
    assert RunFolder.open(folder.path).saved_steps() == []
    resumed = RunFolder.resume(folder.path)
    assert resumed.saved_steps() == [10]
    assert (resumed.checkpoint(10) / "weights").read_text() == "10"
    assert (resumed.status().state, resumed.status().step) == ("running", 10)
    assert [path.name for path in folder.path.rglob(".*")] == []


def test_a_broken_status_does_not_keep_a_run_from_being_resumed(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a", config_yaml=CONFIG)
    folder.status_file.write_text("{")
    assert RunFolder.resume(folder.path).status().state == "running"


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a", config_yaml=CONFIG)
    for step in (100, 20, 3):
        with atomic_folder(folder.checkpoint(step)) as place:
            (place / "weights").write_text("")
    (folder.checkpoints / "step-x").mkdir()
    (folder.checkpoints / "step-7").write_text("a file")
    with pytest.raises(ValueError, match="half"), atomic_folder(folder.checkpoint(200)):
        assert folder.saved_steps() == [3, 20, 100]
        raise ValueError("half")
    assert folder.saved_steps() == [3, 20, 100]


def test_default_names() -> None:
    now = datetime(2025, 7, 19, 14, 30, 5)
    assert default_name("sft", "Qwen/Qwen3-0.6B", now) == "sft-Qwen3-0.6B-20250719-143005"
    assert default_name("./my_loss.py", "/data/llama.Q4_1.GGUF", now) == "my_loss-llama.Q4_1-20250719-143005"
    assert default_name("dpo", "demo:smollm2-135m", now) == "dpo-smollm2-135m-20250719-143005"


@given(st.text(), st.text(), st.datetimes(min_value=datetime(1000, 1, 1)))
def test_every_default_name_is_a_name(method: str, model: str, now: datetime) -> None:
    assert NAME.fullmatch(default_name(method, model, now))
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", default_name(method, model, now))
