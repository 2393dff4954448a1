"""A disk that will be too small is told of early, in words; what several processes want is made once."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.data import arrays, cache
from luthier.data.alone import alone
from luthier.data.prepare import prepare_plan
from luthier.data.room import Room
from luthier.data.windows import Place, Windows
from luthier.errors import DataError
from stream_parts import token_plan, write_tokens


@pytest.fixture
def small_disks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, int]:
    """Free bytes by the name of the folder that a path lies in; others have plenty."""
    free: dict[str, int] = {}
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(
        arrays, "_BUFFERED_VALUES", 100
    )  # so that little data is on the disk soon, as much data is

    def usage(path: Any) -> SimpleNamespace:
        own = next((name for name in free if name in Path(path).parts), "")
        return SimpleNamespace(free=free.get(own, 1 << 50))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return free


def test_a_cache_that_will_be_too_small_is_told_and_gone_without(
    tmp_path: Path, small_disks: dict[str, int]
) -> None:
    plan = token_plan(write_tokens(tmp_path / "a.jsonl", 5000))
    small_disks["cache"] = 100_000
    dataset = prepare_plan(plan, cache_folder=tmp_path / "cache")
    assert len(dataset) == 5000
    (told,) = [note for note in dataset.notes if "could not be kept" in note]
    assert "GiB are needed, and 0.0 fit" in told
    assert list((tmp_path / "cache").iterdir()) == []
    small_disks["cache"] = 1 << 30
    assert not prepare_plan(plan, cache_folder=tmp_path / "cache").notes


def test_disks_that_will_all_be_too_small_end_it_early_with_what_to_do(
    tmp_path: Path, small_disks: dict[str, int]
) -> None:
    file = write_tokens(tmp_path / "a.jsonl", 5000)
    small_disks |= {"cache": 50_000, "tmp": 50_000}
    seen: list[Any] = []
    with pytest.raises(
        DataError, match=r"GiB are needed, and 0\.0 fit\. Make room there.*data\.streaming: true"
    ):
        prepare_plan(token_plan(file), cache_folder=tmp_path / "cache", progress=seen.append)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_estimate_is_that_of_the_part_before(tmp_path: Path, small_disks: dict[str, int]) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    (folder / "part").write_bytes(b"x" * 1000)
    room = Room(folder)
    assert [number for number in range(1, 9000) if room.is_due(number)] == [1024, 2048, 4096, 8192]
    small_disks["tokens"] = 3000
    for share in (None, 0.001, 0.25, 0.9, 1.0):
        room.check(share)
    with pytest.raises(OSError, match="are needed") as caught:
        room.check(0.24)
    assert caught.value.errno == errno.ENOSPC


SECOND = """
import json, sys
sys.path[:0] = PATHS
from pathlib import Path
import luthier.data.alone
from luthier.data.prepare import prepare_plan
from luthier.data.windows import Place, Windows
from stream_parts import token_plan
luthier.data.alone._SECONDS_BETWEEN_WORDS = 0.1
told = []
def hear(text):
    told.append(text)
    Path(CACHE + ".told").touch()
plan = token_plan(Path(FILE))
if WINDOWS:
    Windows(plan, 100, Path(CACHE), keep=True, tell=hear).open(Place(), ahead=False)
else:
    prepare_plan(plan, cache_folder=Path(CACHE), progress=hear)
print(json.dumps(told))
"""


@pytest.mark.parametrize("windows", [False, True])
def test_of_two_processes_that_want_the_same_tokens_one_waits_and_takes_them(
    tmp_path: Path, windows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = write_tokens(tmp_path / "a.jsonl", 50), tmp_path / "cache"
    values = {"PATHS": [path for path in sys.path if path], "FILE": str(file), "CACHE": str(folder)}
    code = SECOND
    for name, value in {**values, "WINDOWS": windows}.items():
        code = code.replace(name, repr(value))
    original, other = cache.new_entry, list[subprocess.Popen[str]]()

    def begun(entry: Path, facts: dict[str, Any]) -> Any:
        """Makes the entry only when the second process waits for it."""
        if not other:
            other.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))
            while not (tmp_path / "cache.told").exists():
                assert other[0].poll() is None, "it has not waited"
                time.sleep(0.05)
        return original(entry, facts)

    monkeypatch.setattr(cache, "new_entry", begun)
    if windows:
        Windows(token_plan(file), 100, folder, keep=True).open(Place(), ahead=False)
    else:
        prepare_plan(token_plan(file), cache_folder=folder)
    output, _ = other[0].communicate(timeout=60)
    assert other[0].returncode == 0 and len(list(folder.rglob("meta.json"))) == 1
    assert "another process makes the same tokens ready" in json.loads(output)[0]
    assert not list(folder.rglob("*.lock"))


def test_a_process_that_dies_lets_the_next_one_in(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    code = "import sys, os; sys.path[:0] = PATHS\nfrom pathlib import Path\nfrom luthier.data.alone import alone\n"
    code += "with alone(Path(ENTRY), print):\n    os.kill(os.getpid(), 9)\n"
    paths = [path for path in sys.path if path]
    code = code.replace("PATHS", repr(paths)).replace("ENTRY", repr(str(entry)))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert (tmp_path / "entry.lock").exists()
    waited: list[str] = []
    with alone(entry, waited.append):
        assert os.listdir(tmp_path) == ["entry.lock"]
    assert not waited and os.listdir(tmp_path) == []
