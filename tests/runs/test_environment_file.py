"""The environment: enough to repeat a run, nothing that names its owner."""

import getpass
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from luthier.runs import environment
from luthier.runs.environment import describe_environment


def test_it_says_what_matters_as_plain_json() -> None:
    found = describe_environment({"device": "cpu"})
    assert json.loads(json.dumps(found)) == found
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == metadata.version("torch")
    assert 1 <= found["cpu"]["cores"] <= (os.cpu_count() or 1)
    assert found["cpu"]["model"] and found["memory_bytes"] > 2**28
    assert found["device"] == "cpu"


def test_nobody_is_named() -> None:
    text = json.dumps(describe_environment())
    for private in (str(Path.home()), os.getcwd(), sys.executable, platform.node()):
        assert len(private) < 4 or private not in text
    assert not any(getpass.getuser() == word for word in text.replace('"', " ").split())


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_commit_and_changes_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert "git" not in describe_environment()
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "one")
    assert describe_environment()["git"] == {"commit": git(tmp_path, "rev-parse", "HEAD"), "changed": False}
    (tmp_path / "a").write_text("2")
    assert describe_environment()["git"]["changed"] is True


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'NVIDIA H200, 143771, 570.1'\necho 'Odd card, [N/A], 570.1'\necho broken\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert describe_environment()["gpus"] == [
        {"name": "NVIDIA H200", "memory_bytes": 143771 * 2**20, "driver": "570.1"},
        {"name": "Odd card", "memory_bytes": None, "driver": "570.1"},
    ]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert "gpus" not in describe_environment()


def test_a_program_that_hangs_is_said_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hang(*arguments: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("git", 10)

    monkeypatch.setattr(environment.subprocess, "run", hang)
    found = describe_environment()
    assert "git" not in found and "cpu" in found
    assert "did not answer" in capsys.readouterr().err
