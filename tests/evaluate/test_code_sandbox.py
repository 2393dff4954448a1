"""What a model's program may do and what not, and the metric that runs it."""

import sys
from pathlib import Path

import pytest

from luthier.errors import ConfigError
from luthier.evaluate import sandbox
from luthier.evaluate.metrics import find

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fences of Linux")


WRITES = 'try: os.write(n, b\'{"passed": true, "reason": ""}\\n\')\n    except OSError: pass'


@pytest.fixture(autouse=True)
def fenced() -> None:
    """Skips where this machine has no fences: then nothing is run, which `test_without_fences` shows."""
    try:
        sandbox.check()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "program",
    [
        "assert sorted([2, 1]) == [1, 2]",
        "open('x', 'w').write('a')\nassert open('x').read() == 'a'",
        "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
        "import asyncio, json, math, re\nasyncio.run(asyncio.sleep(0))",
    ],
)
def test_what_programs_need_works(program: str) -> None:
    assert sandbox.run(program) == sandbox.End(True, "")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "exit"),
        ("import socket; socket.socket()", "PermissionError"),
        ("import urllib.request as u; u.urlopen('http://127.0.0.1:9')", "URLError"),
        ("import os; os.fork()", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import os; os.kill(os.getppid(), 0)", "PermissionError"),
        ("x = bytearray(4 << 30)", "MemoryError"),
        ("print('passed')\nassert 0", "AssertionError"),
        (f"import os\nfor n in range(3, 64):\n    {WRITES}\nassert 0", "AssertionError"),
        ("import atexit, os\natexit.register(os._exit, 0)\nassert 0", "AssertionError"),
        ("import builtins\nbuiltins.AssertionError = SystemExit\nassert 0", "AssertionError"),
        ("import builtins\nbuiltins.BaseException = int\nassert 0", "exit"),
    ],
)
def test_what_does_not_pass(program: str, reason: str) -> None:
    end = sandbox.run(program)
    assert not end.passed and end.reason.startswith(reason)


@pytest.mark.parametrize(
    "doing", ["open({0!r}, 'w')", "__import__('os').remove({0!r})", "__import__('os').chmod({0!r}, 0)"]
)
def test_files_elsewhere_stay_as_they_are(tmp_path: Path, doing: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("mine")
    assert sandbox.run(doing.format(str(file))).reason.startswith("PermissionError")
    assert file.read_text() == "mine" and file.stat().st_mode & 0o400


def test_time_is_limited() -> None:
    assert sandbox.run("while True: pass", seconds=1) == sandbox.End(False, "time")


def test_secrets_of_the_environment_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    assert sandbox.run("import os; assert 'MY_KEY' not in os.environ").passed


def test_the_share_of_answers_that_pass_their_tests() -> None:
    good, bad = "```python\ndef add(a, b):\n    return a + b\n```", "def add(a, b): return a - b"
    tests = "assert add(1, 2) == 3\nassert add(0, 0) == 0"
    metric = find("code:tests", columns=True)
    assert metric.column == "tests"
    assert metric([good, bad, "sorry"], [tests] * 3) == {"code:tests": pytest.approx(1 / 3)}
    with pytest.raises(ConfigError, match="needs the column"):
        find("code", columns=True)


def test_without_fences_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "child.py"
    text = Path(str(sandbox._CHILD)).read_text()
    file.write_text(text.replace('"seccomp")', '"seccomp" if 0 else _checked(-1, "seccomp"))'))
    monkeypatch.setattr(sandbox, "_CHILD", file)
    with pytest.raises(ConfigError, match="cannot be run safely"):
        sandbox.run("open('ran', 'w')")
