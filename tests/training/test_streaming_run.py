"""Law 5 for streams: killed and resumed = never killed. And every shared file trains with its path alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.config.dump import dump_config
from luthier.config.tree import Config
from luthier.errors import ConfigError, DataError, Interrupted
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import read_metrics
from luthier.training.loop import Trainer
from resuming import KILLED
from tiny_runs import tiny_config, write_chats

STREAM: dict[str, Any] = {"streaming": True, "window_rows": 9, "workers": 0}
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def train(config: Config, **options: Any) -> Path:
    return luthier.train(config, say=lambda text: None, **options).folder


def result(run: Path) -> tuple[dict[str, torch.Tensor], list[tuple[str, int, float]]]:
    losses = [(r["kind"], r["step"], r["loss"]) for r in read_metrics(run / "metrics.jsonl") if "loss" in r]
    return load_file(run / "adapter" / "adapter_model.safetensors"), losses


def assert_same(run: Path, other: Path) -> None:
    (one, losses), (two, other_losses) = result(run), result(other)
    assert losses == other_losses and len(losses) > 8
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


@pytest.fixture(scope="module")
def straight(folder: Path) -> Path:
    """A run over a stream that nothing happened to."""
    return train(tiny_config(folder, "straight", data=STREAM))


def killed_at(folder: Path, config: Config, step: int, *resume: str) -> None:
    file = folder / f"{config.run.name}.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, "-c", KILLED, str(file), str(step), *resume]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def test_a_stream_killed_twice_gives_the_run_that_was_never_killed(folder: Path, straight: Path) -> None:
    config = tiny_config(folder, "killed", data=STREAM)
    killed_at(folder, config, 5)
    killed_at(folder, config, 8, "resume")
    assert_same(train(config, resume=True), straight)
    ledger = json.loads((folder / "runs" / "killed" / "ledger.json").read_text())
    assert ledger == json.loads((straight / "ledger.json").read_text())
    assert ledger["train"]["read"] == ledger["train"]["kept"] == 40
    assert not (straight / "tokens").exists() or list((straight / "tokens").iterdir()) == []


def test_a_stream_that_is_interrupted_goes_on_exactly(
    folder: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(folder, "stopped", data={**STREAM, "workers": 1})
    original = Trainer.step

    def stopping(self: Trainer, batches: Any) -> Any:
        report = original(self, batches)
        if report.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return report

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "step", stopping)
        train(config)
    assert_same(train(config, resume=True), straight.parent / "straight")


def test_a_stream_holds_rows_out_by_their_content(folder: Path) -> None:
    said: list[str] = []
    many = write_chats(folder / "many.jsonl", 120, seed=4)
    data = {**STREAM, "path": str(many), "eval_path": None, "window_rows": 50}
    config = tiny_config(folder, "fraction", data={**data, "eval_fraction": 0.2})
    run = luthier.train(config, say=said.append).folder
    ledger = json.loads((run / "ledger.json").read_text())
    held = ledger["train"]["set_aside"]
    assert ledger["train"]["read"] == 120 == ledger["train"]["kept"] + held and 8 <= held <= 45
    assert 0 < ledger["eval"]["kept"] <= held
    assert any("held-out rows are taken from the first 50 of the rows" in line for line in said)
    run = train(tiny_config(folder, "number", data={**data, "eval_rows": 6}))
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["eval"]["kept"] == ledger["train"]["set_aside"] == 6


def test_epochs_of_a_stream_without_a_size_cannot_be_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.data.sources.source.Source.progress", lambda self, position: None)
    with pytest.raises(
        DataError, match=r"train\.epochs cannot be turned into a number of steps; give train\.steps"
    ):
        train(tiny_config(folder, "unknown", data=STREAM))
    run = train(tiny_config(folder, "given", data=STREAM, train={"steps": 4}))
    assert RunFolder.open(run).status().step == 4


def test_a_method_that_needs_all_rows_refuses_a_stream(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.methods.sft import SFT

    monkeypatch.setattr(SFT, "arrange", lambda self, dataset: dataset)
    with pytest.raises(ConfigError, match=r"it needs all rows at once; set data\.streaming: false"):
        train(tiny_config(folder, "arranged", data=STREAM))


COUNTS = {  # rows read, kept, and set aside
    "alpaca_en_demo.json": (999, 999, 0),
    "c4_demo.jsonl": (300, 300, 0),
    "dpo_en_demo.json": (300, 300, 0),
    "glaive_toolcall_en_demo.json": (300, 300, 0),
    "gsm8k_test.jsonl": (1319, 1319, 0),
    "gsm8k_train.jsonl": (7473, 7473, 0),
    "identity.json": (91, 91, 0),
    "kto_en_demo.json": (300, 150, 150),
    "reason_tool_use_demo_50.jsonl": (50, 50, 0),
    "wiki_demo.txt": (30, 30, 0),
}


def shared_files() -> Iterator[Any]:
    for name, counts in COUNTS.items():
        marks = [pytest.mark.slow] if counts[0] > 1000 else []
        yield pytest.param(name, counts, id=name, marks=marks)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
@pytest.mark.parametrize(("name", "counts"), list(shared_files()))
def test_a_shared_file_trains_with_its_path_alone(
    folder: Path, name: str, counts: tuple[int, int, int]
) -> None:
    template = SHARED.parent / "templates" / "qwen3.jinja"  # ours for tests knows no tools
    data = {"path": str(SHARED / name), "eval_path": None, "template": str(template), "overlong": "split"}
    config = tiny_config(
        folder,
        name.split(".")[0],
        data=data,
        train={"steps": 1, "tokens_per_step": 16384, "tokens_per_micro_batch": 16384},
        eval={"every": None, "samples": 0},
    )
    ledger = json.loads((train(config) / "ledger.json").read_text())["train"]
    read, usable, set_aside = counts
    assert ledger["read"] == read and ledger["set_aside"] == set_aside
    assert ledger["kept"] + ledger["truncated"] == usable
