"""`luthier runs`: tables for people, JSON for programs, exit codes for scripts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from luthier.cli.runs import app
from luthier.errors import ConfigError, LuthierError, RunError
from luthier.runs.audit import append, hash_file
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import MetricsWriter


def make(root: Path, name: str, *, rank: int = 8, loss: float = 1.25) -> RunFolder:
    config = f"model: {{name: demo:tiny}}\nmethod: {{name: sft}}\nlora: {{rank: {rank}}}\n"
    folder = RunFolder.create(root, name, config_yaml=config)
    append(folder.audit, "started", {"config": hash_file(folder.config)})
    with MetricsWriter(folder.metrics) as writer:
        writer.write("train", 1, {"loss": loss, "tokens_per_second": 1234.0})
        writer.write("eval", 1, {"loss": 0.5})
    append(folder.audit, "finished")
    folder.set_status("done", step=1, num_steps=1)
    return folder


def run(*arguments: str, width: int = 120) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(width), "TERM": "dumb"})


def failed(result: Result, kind: type[LuthierError]) -> str:
    assert isinstance(result.exception, kind), result.exception
    return str(result.exception)


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_list_fits_the_terminal_and_names_every_run(tmp_path: Path, width: int) -> None:
    make(tmp_path, "first")
    make(tmp_path, "second-[bold]".replace("[bold]", "b"))
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "status.json").write_text("{")
    result = run("list", "--root", str(tmp_path), width=width)
    assert result.exit_code == 0
    for word in ("first", "second-b", "third", "done", "broken", "1.25"):
        assert word in result.stdout
    assert "third: " in result.stdout and "config.yaml is missing" in result.stdout
    table = [line for line in result.stdout.splitlines() if not line.startswith("third: ")]
    assert max(len(line) for line in table) <= width
    assert ("demo:tiny" in result.stdout) == (width >= 80)


def test_list_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    result = run("list", "--root", str(tmp_path / "absent"))
    assert (
        result.exit_code == 0 and "No runs in" in result.stdout and "luthier train run.yaml" in result.stdout
    )
    assert json.loads(run("list", "--root", str(tmp_path), "--json").stdout) == []


def test_list_as_json(tmp_path: Path) -> None:
    make(tmp_path, "first")
    (found,) = json.loads(run("list", "--root", str(tmp_path), "--json").stdout)
    assert (found["name"], found["state"], found["model"]) == ("first", "done", "demo:tiny")
    assert (found["loss"], found["best_eval_loss"], found["step"]) == (1.25, 0.5, 1)


def test_show(tmp_path: Path) -> None:
    folder = make(tmp_path, "first")
    folder.adapter.mkdir()
    folder.checkpoint(1).mkdir()
    result = run("show", "first", "--root", str(tmp_path), width=300)
    for word in ("first", "done", "sft", "demo:tiny", "1/1", "1.25", "1,234", str(folder.adapter), "step 1"):
        assert word in result.stdout, word
    assert json.loads(run("show", "first", "--root", str(tmp_path), "--json").stdout)["state"] == "done"


def test_an_unknown_run_names_the_nearest(tmp_path: Path) -> None:
    make(tmp_path, "tickets-rank8")
    for command in ("show", "report", "verify"):
        said = failed(run(command, "ticket-rank8", "--root", str(tmp_path)), ConfigError)
        assert "There is no run 'ticket-rank8'" in said and "Did you mean tickets-rank8?" in said
    assert ConfigError("x").exit_code == 2


def test_compare(tmp_path: Path) -> None:
    make(tmp_path, "a", rank=8, loss=1.25)
    make(tmp_path, "b", rank=16, loss=1.125)
    result = run("compare", "a", "b", "--root", str(tmp_path))
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.split()}
    assert rows["lora.rank"] == ["8", "16"] and rows["loss"] == ["1.25", "1.125"]
    assert "model.name" not in rows and "method.name" not in rows
    (first, *_) = json.loads(run("compare", "a", "b", "--root", str(tmp_path), "--json").stdout)
    assert first == {"section": "config", "key": "lora.rank", "values": {"a": 8, "b": 16}}
    assert "needs two runs or more; only a is given" in failed(
        run("compare", "a", "--root", str(tmp_path)), ConfigError
    )


def test_compare_shows_config_values_in_full(tmp_path: Path) -> None:
    for name, rate in (("a", "0.000123456"), ("b", "0.000123457")):
        folder = make(tmp_path, name)
        folder.config.write_text(f"model: m\noptim: {{lr: {rate}}}\n")
    shown = run("compare", "a", "b", "--root", str(tmp_path)).stdout
    assert "0.000123456" in shown and "0.000123457" in shown


def test_report_writes_it_anew(tmp_path: Path) -> None:
    folder = make(tmp_path, "a")
    assert run("report", "a", "--root", str(tmp_path)).stdout.strip() == str(folder.report)
    assert "1.25" in folder.report.read_text()


def test_verify(tmp_path: Path) -> None:
    folder = make(tmp_path, "a")
    result = run("verify", "a", "--root", str(tmp_path))
    last = json.loads(folder.audit.read_text().splitlines()[-1])["hash"]
    assert (
        result.exit_code == 0 and f"a: 2 events, all as they were written. Last hash: {last}" in result.stdout
    )
    folder.config.write_text("model: another\n")
    said = failed(run("verify", "a", "--root", str(tmp_path)), RunError)
    assert said.startswith("a is not as the run left it:\n- config.yaml is not the one")


def test_help_needs_nothing_heavy() -> None:
    check = (
        "import sys, luthier.cli.runs; "
        "print(sorted({'torch', 'transformers', 'pydantic', 'yaml', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
