"""All runs at a glance: the whole, the broken and the dead."""

import subprocess
import sys
from pathlib import Path

import pytest

from luthier.errors import ConfigError, RunError
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import MetricsWriter
from luthier.runs.registry import Difference, compare, find_run, list_runs, summarize, task_metrics

CONFIG = """
model: {{name: demo:tiny, dtype: auto}}
method: {method}
lora: {lora}
optim: {{name: adamw, lr: {lr}}}
run: {{name: {method}}}
"""


def make(root: Path, name: str, *, method: str = "sft", lora: str = "null", lr: float = 1e-3) -> RunFolder:
    folder = RunFolder.create(root, name, config_yaml=CONFIG.format(method=method, lora=lora, lr=lr))
    with MetricsWriter(folder.metrics) as writer:
        for step, loss in enumerate([3.0, 2.0, float("nan")], start=1):
            writer.write("train", step, {"loss": loss, "tokens_per_second": 100.0 * step})
            writer.write("eval", step, {"loss": [2.5, 1.5, 1.75][step - 1]})
        writer.write("evaluation", 3, {"when": "after", "exact_match": 0.9})
    folder.set_status("done", step=3, num_steps=3)
    return folder


def test_a_run_in_a_line(tmp_path: Path) -> None:
    run = summarize(make(tmp_path, "a").path)
    assert (run.name, run.state, run.method, run.model) == ("a", "done", "sft", "demo:tiny")
    assert (run.step, run.num_steps, run.loss, run.best_eval_loss) == (3, 3, 2.0, 1.5)
    assert run.tokens_per_second == 200.0
    assert run.started is not None and run.seconds is not None and run.seconds >= 0


def test_newest_first_and_what_is_no_run_is_passed_over(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        make(tmp_path, name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("")
    assert [run.name for run in list_runs(tmp_path)] == ["third", "second", "first"]
    assert list_runs(tmp_path / "absent") == []
    with pytest.raises(ConfigError, match=r"is a file, not a folder of runs\. Give --root the folder"):
        list_runs(tmp_path / "readme.txt")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.yaml", None, "config.yaml is missing"),
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("config.yaml", "- a", "config.yaml does not hold a config but list"),
        ("config.yaml", b"\xff\xfe\x00", "config.yaml cannot be read"),
        ("status.json", None, "status.json is missing"),
        ("status.json", "{", "status.json cannot be read"),
        ("metrics.jsonl", "nonsense\n", "metrics.jsonl, line 1: not a JSON object"),
        ("metrics.jsonl", b"\xff\n", "metrics.jsonl, line 1: not a JSON object"),
    ],
)
def test_a_broken_run_is_listed_with_its_reason(
    tmp_path: Path, file: str, content: str | bytes | None, reason: str
) -> None:
    make(tmp_path, "whole")
    path = make(tmp_path, "damaged").path / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = {run.name: run for run in list_runs(tmp_path)}
    assert found["whole"].state == "done"
    assert found["damaged"].state == "broken" and reason in found["damaged"].message
    with pytest.raises(RunError, match=r"damaged"):
        compare([RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "damaged")])


def test_a_run_whose_process_is_gone_has_died(tmp_path: Path) -> None:
    script = (
        "import sys, os, signal; from luthier.runs.folder import RunFolder; "
        "RunFolder.create(sys.argv[1], 'a', config_yaml='model: m'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    make(tmp_path, "b").set_status("running")
    assert {run.name: run.state for run in list_runs(tmp_path)} == {"a": "died", "b": "running"}


def test_a_run_of_another_machine_is_not_called_dead(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a", config_yaml="model: m")
    mark = folder.status().process
    text = folder.status_file.read_text().replace(mark, "1-1-0000000000")
    folder.status_file.write_text(text)
    assert folder.status().is_alive() is None
    assert summarize(folder.path).state == "running"


def test_nearest_name_for_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"There is no run 'x' in .*There are no runs; --root says where to look"
    ):
        find_run(tmp_path, "x")
    folder = make(tmp_path, "tickets-rank8")
    assert find_run(tmp_path, "tickets-rank8") == folder
    assert find_run("elsewhere", str(folder.path)).path == folder.path
    with pytest.raises(ConfigError, match=r"There is no run 'ticket-rank8' .*Did you mean tickets-rank8"):
        find_run(tmp_path, "ticket-rank8")
    with pytest.raises(ConfigError, match=r"There are: tickets-rank8\."):
        find_run(tmp_path, "zzz")
    with pytest.raises(ConfigError, match="There is no run ''"):
        find_run(tmp_path, "")


def test_comparison_shows_only_what_differs_and_all_results(tmp_path: Path) -> None:
    first = make(tmp_path, "a", lora="{rank: 8, target: [q, v]}")
    second = make(tmp_path, "b", lora="null", lr=2e-3)
    rows = compare([first, second])
    configs = [row for row in rows if row.section == "config"]
    assert configs == [
        Difference("config", "lora.rank", (8, None)),
        Difference("config", "lora.target", (["q", "v"], None)),
        Difference("config", "optim.lr", (0.001, 0.002)),
    ]
    results = {row.key: row.values for row in rows if row.section == "results"}
    assert results["loss"] == (2.0, 2.0) and results["best eval loss"] == (1.5, 1.5)
    assert results["exact_match after"] == (0.9, 0.9)
    assert [row for row in compare([first, first]) if row.section == "config"] == []


def test_the_newest_evaluation_counts() -> None:
    rows = [
        {"kind": "evaluation", "step": 0, "time": 1.0, "when": "before", "f1": 0.1},
        {"kind": "evaluation", "step": 5, "time": 2.0, "when": "after", "f1": 0.8},
        {"kind": "evaluation", "step": 9, "time": 3.0, "when": "after", "f1": 0.9, "bad": None},
    ]
    assert task_metrics(rows, "before") == {"f1": 0.1}
    assert task_metrics(rows, "after") == {"f1": 0.9}
