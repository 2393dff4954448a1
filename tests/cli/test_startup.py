"""The command line starts at once, and checks a config without torch."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

LUTHIER = [sys.executable, "-c", "import sys; from luthier.cli.main import main; sys.exit(main())"]
HEAVY = ("torch", "transformers", "peft", "datasets", "pyarrow", "numpy")


def of_children() -> float:
    """Seconds that the processes this one has waited for were at work."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_takes_less_than_half_a_second():
    """Of a processor, from Python's start to its end, the best of five: a full machine is not Luthier's time."""
    seconds = []
    for _ in range(5):
        start = of_children()
        ended = subprocess.run([*LUTHIER, "--help"], capture_output=True, text=True, timeout=60)
        seconds.append(of_children() - start)
        assert ended.returncode == 0 and "check" in ended.stdout
    assert min(seconds) < 0.5, seconds


def loaded(arguments: list[str], folder: Path) -> set[str]:
    """The top-level modules that are imported once a command line has run."""
    code = (
        "import sys\nfrom luthier.cli.main import main\n"
        f"status = main({arguments!r})\nassert status == 0, status\n"
        "print('MODULES', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.rpartition("MODULES ")[2].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["check", "model=x", "data=a.jsonl"],
        ["check", "--help"],
        ["export", "--help"],
        ["schema"],
    ],
    ids=" ".join,
)
def test_no_torch_to_help_or_check(tmp_path, arguments):
    (tmp_path / "a.jsonl").write_text("")
    modules = loaded(arguments, tmp_path)
    assert "luthier" in modules
    assert not modules & set(HEAVY)


def test_help_needs_neither_pydantic_nor_typer(tmp_path):
    assert not loaded(["--help"], tmp_path) & {"pydantic", "typer", "rich", "yaml"}
