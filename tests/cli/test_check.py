"""The command line's frame, and `luthier check` and `luthier schema` through it."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from luthier.cli import main as frame
from luthier.cli.main import commands, main, summary
from luthier.config.paths import looks_like_path
from luthier.errors import ConfigError, Interrupted, RunError

RUN = """\
model: demo:smollm2-135m
data: {path: [a.jsonl], eval_rows: 8}
lora: {rank: 4, modules_to_save: [lm_head]}
train: {epochs: 2}
eval: {every: 5, patience: 2}
"""

KINDS = ".jsonl, .ndjson, .json, .csv, .tsv, .txt, .parquet, .arrow"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with a config and its data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    return tmp_path


def errors(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_good_config_is_ok_and_shows_what_would_happen(folder, capsys):
    assert main(["check", "run.yaml", "optim.lr=1e-4", "run=first"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "ok"
    assert {line[:15].strip(): line[15:] for line in out[1:]} == {
        "model": "demo:smollm2-135m (dtype auto, device auto)",
        "method": "sft (label_smoothing 0.0, z_loss 0.0, token_metrics False)",
        "data": "a.jsonl (rows of at most 4,096 tokens, longer: drop, plain text: split)",
        "weights": "LoRA of rank 4, alpha 8, on all linear layers; whole: lm_head",
        "optimizer": "adamw (lr 0.0001, beta1 0.9, beta2 0.999, eps 1e-08, weight_decay 0.0)",
        "schedule": "cosine, warm-up 0.03 of all steps",
        "length": "2 epochs; 16,384 tokens a step in micro-batches of 4,096",
        "evaluation": "8 rows held out, every 5 steps, stops after 2 without a better loss",
        "checkpoints": "when interrupted and at the end; the newest 2 are kept",
        "results in": "runs/first",
    }


def test_a_budget_of_tokens_is_told(folder, capsys):
    assert main(["check", "model=x/y", "data=a.jsonl", "train.max_tokens=5000000"]) == 0
    assert "length       5,000,000 tokens; " in capsys.readouterr().out


def test_defaults_are_told(folder, capsys):
    assert main(["check", "model=x/y", "data=a.jsonl", "train.steps=9", "schedule.warmup_steps=3"]) == 0
    out = capsys.readouterr().out
    assert "weights      all are tuned\n" in out
    assert "lr 2e-05" in out
    assert "cosine, warm-up 3 steps" in out
    assert "9 steps; 16,384 tokens" in out
    assert "none; give data.eval_rows or data.eval_path" in out
    assert "runs/, in a folder named after method, model and time of start" in out


def test_choices_about_the_data_are_told(folder, capsys):
    (folder / "b.jsonl").write_text("")
    sets = "data.sets=[a.jsonl, {path: b.jsonl, format: text, weight: 2, repeat: 0.5}]"
    clean = "data.clean={exact_duplicates: true, near_duplicates: 0.8, languages: [en, de]}"
    more = [
        "data.mix=all_exhausted",
        "data.learn=[assistant, tool]",
        "data.thinking=false",
        "data.overlong=split",
    ]
    assert main(["check", "model=x/y", sets, clean, *more]) == 0
    out = capsys.readouterr().out.splitlines()
    assert {line[:15].strip(): line[15:] for line in out[3:8]} == {
        "data": "a.jsonl, b.jsonl [format text, weight 2, repeat 0.5] (rows of at most 4,096 tokens, longer: split)",
        "mixed": "until all sets are used up, temperature 1",
        "learned": "turns of assistant, tool",
        "thinking": "off",
        "left out": "exact duplicates, near duplicates 0.8, languages en, de",
    }


def test_a_folder_that_is_taken_is_told(folder, capsys):
    (folder / "runs" / "first").mkdir(parents=True)
    assert main(["check", "run.yaml", "run=first"]) == 0
    assert "runs/first; it exists: choose another run.name, or train with --resume" in capsys.readouterr().out


def test_all_faults_go_to_stderr_with_status_2(folder, capsys):
    (folder / "run.yaml").write_text("modell: x\ndata: a.jsonl\nlora: {rnk: 3}\n")
    assert main(["check", "run.yaml", "train.epochs=-1"]) == 2
    assert errors(capsys) == [
        "error: run.yaml:1: unknown key modell; did you mean model?",
        "error: run.yaml:3: unknown key lora.rnk; did you mean lora.rank?",
        "error: run.yaml: model is missing (the model that is tuned); write `model: ...`",
        'error: override "train.epochs=-1": train.epochs is -1; expected a number above 0',
    ]


def test_a_missing_file_and_nothing_at_all(folder, capsys):
    assert main(["check", "rum.yaml"]) == 2
    assert errors(capsys) == ["error: rum.yaml: there is no such file; did you mean run.yaml?"]
    assert main(["check"]) == 2
    assert errors(capsys) == ["error: there is nothing to check; name a file, as in: luthier check run.yaml"]


def test_paths_that_lead_nowhere(folder, capsys):
    (folder / "empty").mkdir()
    (folder / "notes.md").write_text("")
    (folder / "run.yaml").write_text(
        "model: ./models/x\ndata:\n  path: [b.jsonl, empty, notes.md]\n  eval_path: ~/x.jsonl\n"
        "  template: empty\nmethod: ./mine.py\n"
    )
    assert main(["check", "run.yaml"]) == 2
    assert errors(capsys) == [
        "error: run.yaml:1: model.name: models/x does not exist; nor does its folder models",
        "error: run.yaml:3: data.path[0]: b.jsonl does not exist; did you mean a.jsonl?",
        f"error: run.yaml:3: data.path[1]: empty is a folder without {KINDS} files",
        f"error: run.yaml:3: data.path[2]: notes.md is none of {KINDS}; convert it",
        f"error: run.yaml:4: data.eval_path: {Path.home()}/x.jsonl does not exist (looked from {folder})",
        "error: run.yaml:5: data.template: empty is a folder; give a file",
        f"error: run.yaml:6: method.name: mine.py does not exist (looked from {folder})",
    ]  # fmt: skip
    assert main(["check", "run.yaml", "model=./empty", "data={path: empty/x}", "method=sft"]) == 2
    assert errors(capsys) == [
        'error: override "model=./empty": model.name: empty is a folder without config.json, so no model',
        'error: override "data={path: empty/x}": data.path: empty/x does not exist '
        f"(looked from {folder})",
    ]  # fmt: skip


def test_paths_that_are_there(folder):
    for name in ("model", "data"):
        (folder / name).mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "data" / "x.parquet").write_text("")
    (folder / "m.gguf").write_text("")
    (folder / "t.jinja").write_text("")
    (folder / "mine.py").write_text("")
    more = ["data.path=[data, a.jsonl]", "data.template=t.jinja", "method=./mine.py"]
    assert main(["check", "run.yaml", "model=./model", *more]) == 0
    assert main(["check", "run.yaml", "model=m.gguf"]) == 0


@pytest.mark.parametrize("name", ["./x", "../x", "/x", "x.gguf", "~/x", "a/b/c"])
def test_names_that_can_only_be_paths(name):
    assert looks_like_path(name)


@pytest.mark.parametrize("name", ["x", "Qwen/Qwen3-0.6B", "demo:smollm2-135m"])
def test_names_that_may_be_on_the_hub(name):
    assert not looks_like_path(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora.rank=32"], "No such option: --lora.rank (settings have no dashes: write lora.rank=32)"),
        (["--lora.rank", "32"], "No such option: --lora.rank (settings have no dashes: write lora.rank=32)"),
        (["--rank", "32"], "(settings have no dashes: write lora.rank=32)"),
        (["--seed=3"], "(settings have no dashes: write seed=3)"),
        (["--nothing"], "No such option: --nothing (luthier check --help tells more)"),
        (["--name", "x"], "(luthier check --help tells more)"),
    ],
)
def test_settings_written_like_options(folder, capsys, arguments, message):
    assert main(["check", "run.yaml", *arguments]) == 2
    (line,) = errors(capsys)
    assert line.startswith("error: ") and line.endswith(message)


def test_an_unknown_command_is_named_with_the_nearest(capsys):
    assert main(["chekc"]) == 2
    assert errors(capsys) == ['error: there is no command "chekc"; did you mean luthier check?']
    assert main(["zzz"]) == 2
    assert errors(capsys) == ['error: there is no command "zzz"; luthier --help lists them']


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_file_in_order(capsys, arguments):
    assert main(arguments) == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2].partition("\n\n")[0]
    names = [line.split()[0] for line in listed.splitlines()]
    assert names == list(commands())
    known = [name for name in frame.ORDER if name in names]
    assert names[: len(known)] == known
    for name, file in commands().items():
        assert summary(file), f"{name} has no docstring"
        assert summary(file) in listed


def test_the_file_name_is_the_command(tmp_path):
    for name in ("main", "_hidden", "zebra", "import_", "two_words", "check"):
        (tmp_path / f"{name}.py").write_text(f'"""`luthier {name}`: does it. And more.\n\nMuch more.\n"""\n')
    assert list(commands(tmp_path)) == ["check", "import", "two-words", "zebra"]
    assert summary(commands(tmp_path)["zebra"]) == "Does it"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("luthier ")


def test_help_of_one_command(capsys):
    assert main(["check", "--help"]) == 0
    assert "Usage: luthier check" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (ConfigError(["one", "two"]), 2, "error: one\nerror: two\n"),
        (RunError("the disk is full"), 1, "error: the disk is full\n"),
        (Interrupted("saved at step 3"), 130, "error: saved at step 3\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_exit_statuses(monkeypatch, capsys, raised, status, message):
    def command() -> None:
        raise raised

    monkeypatch.setitem(sys.modules, "luthier.cli.check", types.SimpleNamespace(command=command))
    assert main(["check"]) == status
    assert capsys.readouterr().err == message


def test_a_bug_shows_its_traceback_and_says_so(monkeypatch, capsys):
    def command() -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setitem(sys.modules, "luthier.cli.check", types.SimpleNamespace(command=command))
    assert main(["check"]) == 1
    lines = errors(capsys)
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == [
        "ZeroDivisionError: oh",
        "This is a bug in Luthier; please report it with the lines above.",
    ]


def test_a_command_can_give_its_own_status(monkeypatch):
    monkeypatch.setitem(sys.modules, "luthier.cli.check", types.SimpleNamespace(command=lambda: 1))
    assert main(["check"]) == 1


@pytest.mark.parametrize(("no_color", "label"), [(None, "\033[31merror:\033[0m"), ("1", "error:")])
def test_errors_are_red_on_a_terminal(monkeypatch, capsys, no_color, label):
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["zzz"]) == 2
    assert errors(capsys)[0].startswith(f"{label} there is")


def test_a_closed_pipe_ends_quietly():
    """What `luthier schema | head -1` does once head has gone."""
    command = [
        sys.executable,
        "-c",
        "import sys; from luthier.cli.main import main; sys.exit(main())",
        "schema",
    ]
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_schema_prints_json(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"].endswith("2020-12/schema")
    assert "weight_decay" in json.dumps(schema)


def test_update_plugins_writes_the_file_that_is_there(monkeypatch, tmp_path, capsys):
    """Imports methods and optimizers, and so torch."""
    import luthier.config.plugins

    real = Path(luthier.config.plugins.__file__).with_name("plugins.json").read_text()
    monkeypatch.setattr(luthier.config.plugins, "__file__", str(tmp_path / "plugins.py"))
    assert main(["schema", "--update-plugins"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'plugins.json'} is up to date\n"
    assert (tmp_path / "plugins.json").read_text() == real


def test_the_reference_is_checked_and_shown(folder, capsys):
    given = ["check", "model=x/y", "data=a.jsonl", "method=dpo"]
    assert main([*given, "reference=./missing"]) == 2
    assert "missing" in capsys.readouterr().err
    assert main([*given, "reference=demo:nothing-of-that-name"]) == 2
    assert "reference.name: " in capsys.readouterr().err
    assert main([*given, "reference=x/other"]) == 0
    assert "x/other (dtype auto)" in capsys.readouterr().out
