"""Law 5: killed at any moment and resumed = never killed, bit for bit. And what a run leaves, refuses and survives."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import luthier
from chat_samples import CHATML
from luthier.config.dump import dump_config
from luthier.config.tree import Config
from luthier.errors import ConfigError, DataError, Interrupted, ModelError, RunError
from luthier.runs.audit import verify_run
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import read_metrics
from luthier.training.loop import Trainer
from tiny_runs import save_tiny_model, tiny_config, write_chats


def train(config: Config, **options: Any) -> Path:
    return luthier.train(config, say=lambda text: None, **options).folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    (folder,) = [run / name for name in ("adapter", "model") if (run / name).is_dir()]
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def losses(run: Path) -> list[tuple[str, int, float]]:
    """Every loss of the run; times and speeds differ."""
    return [
        (row["kind"], row["step"], row["loss"])
        for row in read_metrics(run / "metrics.jsonl")
        if "loss" in row
    ]


def assert_same(run: Path, other: Path) -> None:
    one, two = weights(run), weights(other)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert losses(run) == losses(other)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def straight(folder: Path) -> Path:
    """A run that nothing happened to."""
    return train(tiny_config(folder, "straight"))


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, stop: Any) -> None:
    """Lets the loop call `stop` in the middle of the given step."""
    original = Trainer.step

    def counted(self: Trainer, batches: Any) -> Any:
        report = original(self, batches)
        if report.step == step:
            stop(self)
        return report

    monkeypatch.setattr(Trainer, "step", counted)


@pytest.mark.parametrize("step", [1, 5, 9])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_whole_checkpoint_and_resume_is_exact(
    folder: Path, straight: Path, step: int, kind: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(folder, f"{kind.name}-{step}")
    with monkeypatch.context() as patch:
        stop_after(patch, step, lambda trainer: os.kill(os.getpid(), kind))
        with pytest.raises(
            Interrupted, match=rf"{kind.name}: stopped after step {step} of 10 and saved it. Continue"
        ):
            train(config)
    run = folder / "runs" / f"{kind.name}-{step}"
    assert RunFolder.open(run).status().state == "interrupted" and step in RunFolder.open(run).saved_steps()
    assert_same(train(config, resume=True), straight)
    assert verify_run(run) == []


KILLED_AT_FIVE = """
import os, signal, sys
import luthier
from luthier.training.loop import Trainer
step = Trainer.step
def until_five(self, batches):
    report = step(self, batches)
    if report.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return report
Trainer.step = until_five
luthier.train(sys.argv[1])
"""


def test_kill_9_between_checkpoints_and_resume_is_exact(folder: Path, straight: Path) -> None:
    config = tiny_config(folder, "killed")
    file = folder / "killed.yaml"
    file.write_text(dump_config(config))
    done = subprocess.run([sys.executable, "-c", KILLED_AT_FIVE, str(file)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = RunFolder.open(folder / "runs" / "killed")
    assert run.status().state == "running" and max(run.saved_steps()) == 4, "step 5 is lost, and done again"
    assert_same(train(config, resume=True), straight)


def test_full_fine_tuning_resumes_exactly_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = {"lora": ..., "optim": {"lr": 1e-3}}
    whole = train(tiny_config(folder, "full", **full))
    config = tiny_config(folder, "full-stopped", **full)
    with monkeypatch.context() as patch:
        stop_after(patch, 5, lambda trainer: trainer.interrupt("test"))
        with pytest.raises(Interrupted):
            train(config)
    assert_same(train(config, resume=True), whole)
    assert (whole / "model" / "chat_template.jinja").exists()


def test_a_template_with_a_clock_is_told_the_day_that_the_run_began(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "dated.jinja").write_text("{{ strftime_now('%Y-%m-%d') }}\n" + CHATML)
    dated = {"template": str(folder / "dated.jinja")}
    whole = train(tiny_config(folder, "dated", data={**dated, "date": "2020-01-31"}))
    with monkeypatch.context() as patch:
        stop_after(patch, 5, lambda trainer: trainer.interrupt("test"))
        with pytest.raises(Interrupted):
            train(tiny_config(folder, "dated-stopped", data={**dated, "date": "2020-01-31"}))
    resumed = train(tiny_config(folder, "dated-stopped", data=dated), resume=True)
    assert_same(resumed, whole)
    today = train(tiny_config(folder, "dated-today", data=dated))
    assert losses(today) != losses(whole), "the date is among what is learned from"
    assert luthier.check(today / "config.yaml").data.date is not None


def test_resume_refuses_a_changed_config_with_the_difference(folder: Path, straight: Path) -> None:
    changed = tiny_config(folder, "straight", optim={"lr": 5e-3})
    with pytest.raises(
        ConfigError, match=r"(?s)started with another config.*optim\.lr: 0\.01 -> 0\.005.*--allow-changes"
    ):
        train(changed, resume=True)
    with pytest.raises(ConfigError, match=r"there is no run .*nowhere to resume; leave out --resume"):
        train(tiny_config(folder, "nowhere"), resume=True)


def test_resume_with_allowed_changes_goes_on_longer(folder: Path) -> None:
    train(tiny_config(folder, "longer"))
    run = train(tiny_config(folder, "longer", train={"epochs": 3}), resume=True, allow_changes=True)
    assert RunFolder.open(run).status().step == 15 and "epochs: 3" in (run / "config.yaml").read_text()


def test_a_truncated_checkpoint_is_told_with_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(folder, "torn")
    with monkeypatch.context() as patch:
        stop_after(patch, 5, lambda trainer: trainer.interrupt("test"))
        with pytest.raises(Interrupted):
            train(config)
    state = folder / "runs" / "torn" / "checkpoints" / "step-5" / "trainer.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"step-5 cannot be read .*Remove that folder to use the one before"):
        train(config, resume=True)


def test_a_full_disk_while_saving_leaves_the_checkpoint_before(
    folder: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(folder, "full-disk")
    original, calls = torch.save, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(RunError, match=r"full"):
            train(config)
    run = RunFolder.open(folder / "runs" / "full-disk")
    assert run.status().state == "failed" and run.saved_steps() == [3, 4]
    assert_same(train(config, resume=True), straight)


def test_a_run_describes_itself(straight: Path) -> None:
    names = {path.name for path in straight.iterdir()}
    wanted = (
        "config.yaml metrics.jsonl ledger.json audit.jsonl environment.json adapter report.html samples.jsonl"
    )
    assert names >= set(wanted.split())
    ledger = json.loads((straight / "ledger.json").read_text())
    assert ledger["train"]["read"] == 40 == ledger["train"]["kept"]
    assert luthier.check(straight / "config.yaml").lora is not None
    assert RunFolder.open(straight).status().state == "done" and verify_run(straight) == []
    assert len(RunFolder.open(straight).saved_steps()) <= 3  # keep 2, and the best
    html = (straight / "report.html").read_text()
    assert not re.findall(r".{20}(?:src|href)=.?https?://.{20}", html) and "evaluation loss" in html.lower()


def test_the_output_folder_must_be_new(folder: Path, straight: Path) -> None:
    before = (straight / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="exists and is not empty; a new run would overwrite it"):
        train(tiny_config(folder, "straight"))
    assert (straight / "metrics.jsonl").read_bytes() == before


def test_the_best_weights_are_kept_when_later_ones_are_worse(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([3.0, 1.0, 2.0, 5.0, 4.0])
    monkeypatch.setattr("luthier.training.run.evaluate_loss", lambda *args: {"loss": next(values)})
    said: list[str] = []
    config = tiny_config(folder, "best", eval={"every": 2, "patience": 2})
    result = luthier.train(config, say=said.append)
    assert result.eval_loss == 1.0
    assert any("stopped early: no better evaluation loss than 1.0000 (step 4) in 2" in text for text in said)
    assert "taking the weights of step 4, the best by evaluation loss" in said
    best = load_file(result.folder / "checkpoints" / "step-4" / "adapter_model.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in weights(result.folder).items())


def test_held_out_rows_are_drawn_from_the_data_and_not_trained_on(folder: Path) -> None:
    config = tiny_config(folder, "drawn", data={"eval_path": None, "eval_rows": 10})
    run = train(config)
    assert any(row["kind"] == "eval" for row in read_metrics(run / "metrics.jsonl"))
    with pytest.raises(DataError, match=r"data\.eval_rows is 40, but only 40 rows can be used"):
        train(tiny_config(folder, "all-drawn", data={"eval_path": None, "eval_rows": 40}))


def test_bad_models_are_refused_in_plain_words(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"there is no such folder or file \(did you mean .*model\?\)"):
        train(tiny_config(folder, "m1", model=str(folder / "modle")))
    with pytest.raises(ModelError, match=r"no demo model 'demo:smollm2-135'. Did you mean demo:smollm2-135m"):
        train(tiny_config(folder, "m2", model="demo:smollm2-135"))
    with pytest.raises(ModelError, match="not in the local hub cache and offline is set"):
        train(tiny_config(folder, "m3", model="nobody/nothing", offline=True))
    bare = save_tiny_model(tmp_path / "bare")
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        path = bare / file
        if file.endswith(".jinja"):
            path.unlink()
        else:
            path.write_text(
                json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"})
            )
    with pytest.raises(DataError, match=r"no chat template"):
        train(tiny_config(folder, "m4", model=str(bare)))
    monkeypatch.setattr("luthier.models.device.computes_bf16", lambda device: False)
    wanted = {"name": str(folder / "model"), "dtype": "bfloat16"}
    with pytest.raises(
        ModelError, match=r"model\.dtype is bfloat16, but this CPU has no bfloat16 instructions"
    ):
        train(tiny_config(folder, "m5", model=wanted))
    failed = RunFolder.open(folder / "runs" / "m5").status()
    assert failed.state == "failed" and "bfloat16" in failed.message


def test_data_that_cannot_be_used_stops_the_run(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DataError, match=r"empty\.jsonl is empty"):
        train(tiny_config(folder, "d1", data={"path": str(empty)}))
    short = write_chats(tmp_path / "chats.jsonl", 5)
    with pytest.raises(DataError, match=r"(?s)tokens"):
        train(tiny_config(folder, "d2", data={"path": str(short), "max_length": 8}))


def test_an_early_stop_outlives_a_kill_and_nan_is_never_best(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(folder, "early", eval={"every": 2, "patience": 2}, checkpoint={"every": 2})
    values = iter([float("nan"), 1.0, 2.0, 5.0])
    monkeypatch.setattr("luthier.training.run.evaluate_loss", lambda *args: {"loss": next(values)})
    with monkeypatch.context() as patch:  # the machine fails between the last step and the final files
        patch.setattr("luthier.training.run._save_trained", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    said: list[str] = []
    result = luthier.train(config, resume=True, say=said.append)
    assert result.eval_loss == 1.0 and RunFolder.open(result.folder).status().step == 8
    assert "taking the weights of step 4, the best by evaluation loss" in said


def test_a_finished_run_is_not_done_again(folder: Path, straight: Path) -> None:
    said: list[str] = []
    before = (straight / "audit.jsonl").read_bytes()
    result = luthier.train(tiny_config(folder, "straight"), resume=True, say=said.append)
    assert said == [f"{straight} is finished; to train longer, raise train.epochs and add --allow-changes"]
    assert result.trained == straight / "adapter" and result.eval_loss is not None
    assert (straight / "audit.jsonl").read_bytes() == before


def test_changed_data_is_not_resumed_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_chats(tmp_path / "rows.jsonl", 40)
    config = tiny_config(folder, "moved", data={"path": str(rows)})
    with monkeypatch.context() as patch:
        stop_after(patch, 4, lambda trainer: trainer.interrupt("test"))
        with pytest.raises(Interrupted):
            train(config)
    write_chats(rows, 39, seed=5)
    with pytest.raises(
        ConfigError, match=r"the data of .*moved has changed since it was started \(0:rows\.jsonl\)"
    ):
        train(config, resume=True)
    assert RunFolder.open(folder / "runs" / "moved").status().state == "interrupted"
    train(config, resume=True, allow_changes=True)


def test_a_refused_resume_leaves_a_finished_run_as_it_was(folder: Path) -> None:
    run = train(tiny_config(folder, "kept"))
    before = (run / "config.yaml").read_bytes()
    other = tiny_config(folder, "kept", lora={"rank": 8})
    with pytest.raises(ModelError):
        train(other, resume=True, allow_changes=True)
    assert (run / "config.yaml").read_bytes() == before
    assert RunFolder.open(run).status().state == "done" and verify_run(run) == []


def test_a_start_that_failed_at_once_gives_its_name_back(folder: Path) -> None:
    with pytest.raises(ModelError):
        train(tiny_config(folder, "typo", lora={"target": ["q_porj"]}))
    assert train(tiny_config(folder, "typo")).name == "typo"


def test_a_run_works_from_everywhere(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_config(folder)  # makes model and data
    monkeypatch.chdir(folder)
    relative = tiny_config(
        folder, "near", model="model", data={"path": "train.jsonl", "eval_path": "test.jsonl"}
    )
    run = train(relative)
    monkeypatch.chdir(tmp_path)
    assert luthier.load(run).answer("red", max_new_tokens=2) is not None
    assert luthier.merge(run).is_dir()


def test_verify_sees_changes_to_what_was_measured(folder: Path) -> None:
    run = train(tiny_config(folder, "touched"))
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    assert verify_run(run) == ["metrics.jsonl was changed after the run wrote it"]
