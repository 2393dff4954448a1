"""Old or new, never between: writes that fail, that run out of disk, and that are killed at any moment."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import RunError
from luthier.runs import atomic
from luthier.runs.atomic import atomic_folder, atomic_remove, atomic_write_text, explain, recover
from luthier.runs.process import ProcessMark


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put(path: Path, content: str) -> None:
    with atomic_folder(path) as folder:
        (folder / "inner").mkdir()
        (folder / "a").write_text(content)
        (folder / "inner" / "b").write_text(content)


def content(path: Path) -> set[str]:
    assert entries(path) == ["a", "inner"] and entries(path / "inner") == ["b"]
    return {(path / "a").read_text(), (path / "inner" / "b").read_text()}


def test_text_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    atomic_write_text(path, "old")
    atomic_write_text(path, "né €")
    assert path.read_text(encoding="utf-8") == "né €"
    assert entries(tmp_path) == ["config.yaml"]


def test_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step-10"
    with atomic_folder(path) as folder:
        (folder / "weights").write_text("1")
        assert not path.exists()
    with atomic_folder(path) as folder:
        (folder / "other").write_text("2")
        assert (path / "weights").read_text() == "1"
    assert entries(path) == ["other"]
    assert entries(path.parent) == ["step-10"]


@pytest.mark.parametrize("failure", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_a_body_that_raises_changes_nothing(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "step-1"
    put(path, "old")
    with pytest.raises(type(failure)), atomic_folder(path) as folder:
        (folder / "a").write_text("half")
        raise failure
    assert content(path) == {"old"}
    assert entries(tmp_path) == ["step-1"]


def test_without_replace_a_full_folder_is_refused_and_an_empty_one_taken(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    with atomic_folder(path, replace=False) as folder:
        (folder / "a").write_text("first")
    with (
        pytest.raises(FileExistsError, match="exists and is not empty"),
        atomic_folder(path, replace=False) as folder,
    ):
        (folder / "a").write_text("second")
    assert (path / "a").read_text() == "first"
    assert entries(tmp_path) == ["run"]


def test_a_rename_that_fails_half_way_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step-1"
    put(path, "old")
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source).suffix == ".partial" and not Path(target).exists():
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(atomic.os, "rename", failing)
    with pytest.raises(RunError, match="input/output error"):
        put(path, "new")
    assert content(path) == {"old"}
    assert entries(tmp_path) == ["step-1"]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (
            errno.ENOSPC,
            r"the disk \(or your quota\) is full; [\d,.]+ MiB are free.*Free some space, lower `checkpoint",
        ),
        (errno.EDQUOT, r"the disk \(or your quota\) is full"),
        (
            errno.EROFS,
            "the file system is read-only. Set `run.root` to a folder on a disk that can be written",
        ),
        (errno.EACCES, "permission denied. Change the permissions of the folder, or set `run.root`"),
        (errno.EPERM, "permission denied"),
        (errno.EIO, "the disk reports an input/output error. Check the disk"),
    ],
)
def test_disk_errors_say_what_to_do(tmp_path: Path, number: int, says: str) -> None:
    path = tmp_path / "step-1"
    put(path, "old")
    with pytest.raises(RunError, match=says) as caught, atomic_folder(path):
        raise OSError(number, os.strerror(number))
    assert str(path) in str(caught.value)
    assert content(path) == {"old"}


def test_errors_of_other_places_and_kinds_stay_themselves(tmp_path: Path) -> None:
    assert explain(OSError(errno.EACCES, "denied", "/elsewhere/data.jsonl"), tmp_path / "x") is None
    assert explain(OSError(errno.ENOENT, "missing"), tmp_path / "x") is None
    assert explain(OSError(errno.EACCES, "denied", str(tmp_path)), tmp_path / "x" / "y") is not None
    with pytest.raises(PermissionError), atomic_folder(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "denied", "/elsewhere/data.jsonl")


def test_a_text_that_does_not_fit_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    atomic_write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(RunError, match="is full"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["status.json"]


@pytest.mark.parametrize("hides", [False, True])
def test_a_disk_that_is_really_full(small_disk: Path, hides: bool) -> None:
    """Also where a library turns the disk's error into one of its own, without a number, as torch does."""
    path = small_disk / "step-1"
    put(path, "old")
    with pytest.raises(RunError, match=r"is full; 0\.0 MiB are free"), atomic_folder(path) as folder:
        try:
            (folder / "weights").write_bytes(bytes(2 << 20))
        except OSError:
            if hides:
                raise RuntimeError("unexpected pos 576 vs 534") from None
            raise
    assert content(path) == {"old"}
    assert entries(small_disk) == ["step-1"]
    put(path, "new")
    assert content(path) == {"new"}


def test_a_disk_that_is_really_read_only(small_disk: Path, freeze: Callable[[], None]) -> None:
    put(small_disk / "step-1", "old")
    freeze()
    with pytest.raises(RunError, match="the file system is read-only"):
        put(small_disk / "step-1", "new")
    with pytest.raises(RunError, match="the file system is read-only"):
        atomic_write_text(small_disk / "a", "new")
    recover(small_disk)
    assert content(small_disk / "step-1") == {"old"}


WRITER = """
import sys
from pathlib import Path
from luthier.runs.atomic import atomic_folder, atomic_write_text
root = Path(sys.argv[1])
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    with atomic_folder(root / "step") as folder:
        (folder / "inner").mkdir()
        (folder / "a").write_text(str(number) * 2000)
        (folder / "inner" / "b").write_text(str(number) * 2000)
    atomic_write_text(root / "status", str(number) * 2000)
"""


def test_killed_at_any_moment_the_state_is_whole(tmp_path: Path) -> None:
    """SIGKILL at random moments: after `recover` folder and file are whole and never older than before."""
    moments = random.Random(0)
    put(tmp_path / "step", "0" * 2000)
    atomic_write_text(tmp_path / "status", "0" * 2000)
    before = (0, 0)
    for _ in range(25):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(before[0])]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        recover(tmp_path)
        assert entries(tmp_path) == ["status", "step"]
        (folder,) = content(tmp_path / "step")
        status = (tmp_path / "status").read_text()
        found = (int(folder[: len(folder) // 2000]), int(status[: len(status) // 2000]))
        assert (folder, status) == (str(found[0]) * 2000, str(found[1]) * 2000)
        assert found[0] >= before[0] and found[1] in (found[0], found[0] - 1, before[1])
        before = found
    assert before[0] > 5, "the writer was always killed before it wrote"


KILLED = """
import os, signal, sys
from pathlib import Path
from luthier.runs import atomic
calls = 0

def counted(call):
    def dying(*arguments, **options):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return dying

for name in ("rename", "replace", "fsync", "open", "mkdir", "rmdir", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
with atomic.atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "inner").mkdir()
    (folder / "a").write_text("new")
    (folder / "inner" / "b").write_text("new")
"""


def test_killed_before_each_system_call_the_state_is_whole(tmp_path: Path) -> None:
    """The same, but at every point where something changes: one of them lies between the two renames."""
    seen: list[str] = []
    missing, ended = 0, False
    for call in range(1, 60):
        root = tmp_path / str(call)
        put(root / "step", "old")
        done = subprocess.run([sys.executable, "-c", KILLED, str(root / "step"), str(call)])
        missing += not (root / "step").exists()
        recover(root)
        assert entries(root) == ["step"]
        (state,) = content(root / "step")
        seen.append(state)
        ended = done.returncode == 0
        if ended:
            break
        assert done.returncode == -signal.SIGKILL
    assert ended and seen[-1] == "new", "the writer never came to its end"
    assert seen == sorted(seen, reverse=True) and len(seen) > 12, "old, then new"
    assert missing == 1, "the gap between the renames was not met"


def test_what_is_removed_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "step", "old")
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_discard", lambda path: None)  # as if killed right after the rename
        atomic_remove(tmp_path / "step")
    assert not (tmp_path / "step").exists() and len(entries(tmp_path)) == 1
    recover(tmp_path, sole_writer=True)
    assert entries(tmp_path) == []
    put(tmp_path / "step", "old")
    atomic_remove(tmp_path / "step")
    assert entries(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        atomic_remove(tmp_path / "step")


def test_what_may_not_be_removed_stays(small_disk: Path, freeze: Callable[[], None]) -> None:
    put(small_disk / "step", "old")
    freeze()
    with pytest.raises(RunError, match="the file system is read-only"):
        atomic_remove(small_disk / "step")
    assert content(small_disk / "step") == {"old"}


def gone() -> ProcessMark:
    """The mark of a process that has ended."""
    asked = "from luthier.runs.process import ProcessMark; print(ProcessMark.current())"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    return ProcessMark.parse(done.stdout.strip())


def test_recover_brings_back_a_folder_that_was_being_replaced(tmp_path: Path) -> None:
    put(tmp_path / "step", "old")
    mark = gone()
    os.rename(tmp_path / "step", tmp_path / f".step.{mark}.00000000.old")
    put(tmp_path / f".step.{mark}.11111111.partial", "new")
    recover(tmp_path)
    assert content(tmp_path / "step") == {"old"}
    assert entries(tmp_path) == ["step"]


def test_recover_leaves_what_living_and_unseen_processes_write(tmp_path: Path) -> None:
    here = ProcessMark.current()
    elsewhere = ProcessMark(here.pid, here.began, "0" * 10)
    for mark in (here, elsewhere, gone()):
        (tmp_path / f".a.{mark}.00000000.partial").write_text("half")
    (tmp_path / ".hidden").write_text("not ours")
    recover(tmp_path)
    assert entries(tmp_path) == sorted([".hidden", *(f".a.{m}.00000000.partial" for m in (here, elsewhere))])
    recover(tmp_path, sole_writer=True)
    assert entries(tmp_path) == [".hidden"]


def test_a_process_is_told_from_its_successor_of_the_same_number(tmp_path: Path) -> None:
    here = ProcessMark.current()
    assert here.life() == "alive"
    assert ProcessMark(here.pid, here.began + 1, here.place).life() == "gone"
    assert ProcessMark(here.pid, here.began, "f" * 10).life() == "elsewhere"
    assert gone().life() == "gone"


@given(st.integers(0, 2**31), st.integers(0, 2**40), st.text("0123456789abcdef", min_size=10, max_size=10))
def test_marks_survive_being_written(pid: int, began: int, place: str) -> None:
    mark = ProcessMark(pid, began, place)
    assert ProcessMark.parse(str(mark)) == mark
    assert atomic.LEFTOVER.fullmatch(f".step-1.{mark}.0123abcd.partial")
