"""`luthier train` as a user types it: results, exit codes, Ctrl-C."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.cli.train import summary
from luthier.config.dump import dump_config
from tiny_runs import tiny_config


def luthier(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "luthier", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


def test_train_chat_export_and_runs(folder: Path) -> None:
    config = tiny_config(folder, "first", eval={"metrics": ["exact_match"], "metric_rows": 3})
    (folder / "run.yaml").write_text(dump_config(config))
    done = luthier("train", "run.yaml", "optim.lr=5e-3", folder=folder)
    assert done.returncode == 0, done.stderr
    assert (
        "exact match: 0.000 -> " in done.stdout
        and f"try it:  luthier chat {config.run.root}/first" in done.stdout
    )
    assert "lr: 0.005" in (folder / "runs/first/config.yaml").read_text()
    said = luthier("chat", "runs/first", "--once", "red cat", "--max-new-tokens", "4", folder=folder)
    assert said.returncode == 0, said.stderr
    shown = luthier("runs", "list", folder=folder)
    assert shown.returncode == 0 and "first" in shown.stdout and "done" in shown.stdout
    exported = luthier("export", "runs/first", "--to", "merged", folder=folder)
    assert exported.returncode == 0, exported.stderr
    assert (folder / "runs/first/merged/config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("train", "run.yaml", "train.epoch=3"), 2, "did you mean train.epochs"),
        (("train", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("train", "run.yaml", "--resume", "run.name=missing"), 2, "there is no run"),
        (("train", "run.yaml", "run.name=first"), 2, "exists and is not empty"),
        (("train", "run.yaml", "data.path=none.jsonl", "run.name=x1"), 2, "none.jsonl"),
        (("train", "run.yaml", "eval.metrics=[exact_mtch]", "run.name=x2"), 2, "exact_match"),
        (("train", "run.yaml", "lora.target=[q_porj]", "run.name=x3"), 2, "q_proj"),
    ],
)
def test_wrong_input_is_one_message_and_status_2(
    folder: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    tiny = tiny_config(folder, "first")
    (folder / "run.yaml").write_text(dump_config(tiny))
    (folder / "runs/first").mkdir(parents=True, exist_ok=True)
    (folder / "runs/first/keep").touch()
    done = luthier(*arguments, folder=folder)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    assert message in done.stderr


def test_ctrl_c_saves_and_leaves_with_130_and_resume_finishes(folder: Path) -> None:
    config = tiny_config(folder, "ctrl-c", train={"epochs": 60})
    (folder / "long.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "luthier", "train", "long.yaml"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not (folder / "runs/ctrl-c/checkpoints/step-6").is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in errors
    assert "SIGINT: stopped after step" in errors and "luthier train" in errors and "--resume" in errors
    (folder / "elsewhere").mkdir()
    done = luthier("train", str(folder / "runs/ctrl-c"), "--resume", folder=folder / "elsewhere")
    assert done.returncode == 0 and "continuing after step" in done.stdout, done.stderr


def test_the_summary_names_each_metric_over_all_rows() -> None:
    lines = summary({"exact_match": 0.0}, {"exact_match": 0.9, "field_f1/date": 0.5, "json_valid": 1.0})
    assert lines == ["exact match: 0.000 -> 0.900", "json valid: 1.000"]
