"""The C++ side: built once, kept, private, safe against races; never an error where it cannot be had."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from luthier.kernels import native

SOURCE = 'extern "C" __attribute__((visibility("default"))) void answer(long long* out) { *out = NUMBER; }\n'
RACE = """
import sys
from pathlib import Path
from luthier.kernels import native
outcome = native.build(Path(sys.argv[1]), sources=Path(sys.argv[2]))
sys.exit(outcome.reason or 0)
"""


@pytest.fixture
def library() -> native.Library:
    found = native.library()
    if found is None:
        pytest.skip(native.reason())
    return found


@pytest.fixture
def sources(tmp_path: Path, library: native.Library) -> Path:
    """A tiny library, so that building it takes no time; needs a compiler, as the real one does."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "number.h").write_text("#define NUMBER 42\n")
    (folder / "answer.cpp").write_text('#include "number.h"\n' + SOURCE)
    (folder / "other.cpp").write_text("int unused() { return 1; }\n")
    return folder


def answer(outcome: native.Outcome) -> int:
    assert outcome.library is not None, outcome.reason
    out = ctypes.c_int64()
    outcome.library.function("answer", "p")(ctypes.addressof(out))
    return out.value


def test_builds_once_and_keeps_it_for_this_user_alone(tmp_path: Path, sources: Path) -> None:
    folder = tmp_path / "cache"
    first = native.build(folder, sources=sources)
    assert answer(first) == 42 and first.library is not None
    written = first.library.path.stat().st_mtime_ns
    again = native.build(folder, sources=sources)
    assert again.library is not None and again.library.path.stat().st_mtime_ns == written
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == [first.library.path.name]  # no leftovers


def test_a_umask_that_lets_the_group_write_does_not_make_it_build_again(
    tmp_path: Path, sources: Path
) -> None:
    before = os.umask(0o002)  # as where every user has a group of the same name
    try:
        made = native.build(tmp_path / "cache", sources=sources).library
        assert made is not None
        written = made.path.stat()
        again = native.build(tmp_path / "cache", sources=sources).library
    finally:
        os.umask(before)
    assert written.st_mode & 0o777 == 0o700
    assert again is not None and again.path.stat().st_mtime_ns == written.st_mtime_ns


def test_what_a_killed_build_left_is_removed_and_one_under_way_is_not(tmp_path: Path, sources: Path) -> None:
    left, under_way = tmp_path / "cache" / "building-old", tmp_path / "cache" / "building-new"
    for folder in (left, under_way):
        folder.mkdir(parents=True)
        (folder / "answer.o").write_text("half of it")
    os.utime(left, (0, 0))
    assert answer(native.build(tmp_path / "cache", sources=sources)) == 42
    assert not left.exists() and (under_way / "answer.o").exists()


def test_a_folder_open_to_others_is_closed(tmp_path: Path, sources: Path) -> None:
    (folder := tmp_path / "cache").mkdir()
    folder.chmod(0o777)
    assert answer(native.build(folder, sources=sources)) == 42
    assert folder.stat().st_mode & 0o777 == 0o700


def test_no_code_is_loaded_from_another_users_folder(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "cache").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    outcome = native.build(folder, sources=sources)
    assert outcome.library is None and outcome.reason.endswith(
        "belongs to another user, so no code is loaded from it."
    )


@pytest.mark.parametrize("changed", ["answer.cpp", "number.h"])
def test_a_changed_source_is_a_new_build(tmp_path: Path, sources: Path, changed: str) -> None:
    assert answer(native.build(tmp_path / "cache", sources=sources)) == 42
    path = sources / changed
    path.write_text(path.read_text().replace("NUMBER;", "NUMBER + 1;").replace("42", "43"))
    assert answer(native.build(tmp_path / "cache", sources=sources)) == 43


def test_a_damaged_build_is_built_again(tmp_path: Path, sources: Path) -> None:
    made = native.build(tmp_path / "cache", sources=sources).library
    assert made is not None
    made.path.unlink()  # the loaded one stays whole in memory; a new file takes its name
    made.path.write_bytes(b"\x7fELF cut off by a power failure")
    assert answer(native.build(tmp_path / "cache", sources=sources)) == 42


def test_two_processes_may_build_at_once(tmp_path: Path, sources: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path / "cache"), str(sources)]
    racing = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in racing:
        _, complaint = process.communicate(timeout=120)
        assert process.returncode == 0, complaint
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_threads_may_build_at_once(tmp_path: Path, sources: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: native.build(tmp_path / "cache", sources=sources), range(4)))
    assert [answer(outcome) for outcome in outcomes] == [42] * 4


def test_no_compiler_is_a_reason(tmp_path: Path) -> None:
    outcome = native.build(tmp_path / "cache", compilers=("no-such-compiler", "nor-this"))
    assert outcome.library is None
    assert outcome.reason == "There is no C++ compiler (looked for no-such-compiler, nor-this)."


def test_a_compiler_that_fails_is_a_reason(tmp_path: Path, sources: Path) -> None:
    (sources / "answer.cpp").write_text("this is no C++;\n")
    outcome = native.build(tmp_path / "cache", sources=sources)
    assert outcome.library is None
    assert re.search(r"failed with status 1: .*answer\.cpp:1:1: error", outcome.reason)
    assert not list((tmp_path / "cache").iterdir())


def test_a_folder_that_cannot_be_made_is_a_reason(tmp_path: Path, sources: Path) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    outcome = native.build(tmp_path / "cache", sources=sources)
    assert outcome.library is None
    assert outcome.reason.startswith("The C++ kernels could not be built or loaded in ")


def test_switched_off_for_a_block(library: native.Library) -> None:
    with pytest.raises(ZeroDivisionError), native.disabled():
        assert native.library() is None
        assert native.reason() == "The C++ kernels are switched off."
        raise ZeroDivisionError
    assert native.library() is library and native.reason() == ""


def test_only_known_tensors_go_to_it(library: native.Library) -> None:
    x = torch.ones(3, 4)
    assert native.library_for(x, None, x[:, :2]) is library
    assert native.library_for(x.bfloat16(), x.bfloat16()) is library
    assert native.library_for(x, x.bfloat16()) is None
    assert native.library_for(x.double()) is None and native.library_for(x.half()) is None
    assert native.library_for(x.T) is None and native.library_for(x[:, :1].T) is None
    assert native.library_for(torch.ones(3, 4, device="meta")) is None


def max_threads(library: native.Library) -> int:
    out = ctypes.c_int64()
    library.function("max_threads", "p")(ctypes.addressof(out))
    return out.value


def test_loops_run_on_torchs_threads(library: native.Library) -> None:
    maps = Path("/proc/self/maps")
    if maps.exists():
        pools = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}
        assert len(pools) <= 1, "two copies of OpenMP would fight for the cores"
    if max_threads(library) == 1 and torch.get_num_threads() > 1:
        pytest.skip("this compiler has no OpenMP")
    before = torch.get_num_threads()
    try:
        for count in (1, 3, 2):
            torch.set_num_threads(count)
            assert max_threads(library) == count
    finally:
        torch.set_num_threads(before)


def test_another_python_thread_gets_torchs_thread_count(library: native.Library) -> None:
    before, seen = torch.get_num_threads(), []
    if max_threads(library) == 1 and before > 1:
        pytest.skip("this compiler has no OpenMP")

    def look() -> None:
        found = native.library()
        assert found is not None
        seen.append(max_threads(found))

    try:
        torch.set_num_threads(3)
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert seen == [3]


def test_a_build_that_raises_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Path) -> native.Outcome:
        raise RuntimeError("no home")

    monkeypatch.setattr(native, "build", fails)
    outcome = native._build_or_say_why()
    assert outcome.library is None and outcome.reason.endswith("RuntimeError: no home")


def test_the_next_compiler_is_tried_where_one_fails(tmp_path: Path) -> None:
    old = tmp_path / "old-g++"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'error: too old' >&2\nexit 1\n")
    old.chmod(0o755)
    working = [name for name in native.COMPILERS if shutil.which(name)]
    assert native.build(tmp_path / "cache", [str(old), *working]).library is not None
    assert "too old" in native.build(tmp_path / "other", [str(old)]).reason


def test_a_library_that_others_could_have_written_is_not_loaded(tmp_path: Path) -> None:
    assert native.build(tmp_path / "cache").library is not None
    (built,) = (tmp_path / "cache").glob("*.so")
    built.unlink()  # never written over: this process runs the code in it
    built.write_bytes(b"planted")
    built.chmod(0o666)
    assert native.build(tmp_path / "cache").library is not None
    assert built.read_bytes() != b"planted"
