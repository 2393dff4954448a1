"""`luthier data inspect`: what people and programs read."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from chat_samples import CHATML, byte_level
from luthier.cli import data as command
from luthier.cli.main import main
from luthier.data.chat import ChatTemplate
from luthier.data.conversation import conversation_from

ROWS: list[Any] = [
    {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "[b]hi[/b] there"}]},
    "{broken",
    {"messages": [{"role": "human", "content": "hello"}]},
    {"messages": [{"role": "user", "content": "word " * 50}, {"role": "assistant", "content": "yes"}]},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in ROWS))
    return path


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> PreTrainedTokenizerFast:
    made = byte_level()
    made.chat_template = CHATML
    monkeypatch.setattr(command, "_tokenizer", lambda config: made)
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["data", "inspect", *arguments]) == 0
    return capsys.readouterr().out


def test_without_a_model(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, str(file))
    assert "format: messages" in out
    assert "4 rows: 2 kept, 0 truncated, 2 dropped" in out
    assert f"1 x message 1 has the unknown role 'human'; did you mean 'user'? ({file}:3)" in out
    assert "Name a model (--model)" in out


def test_with_a_model(
    file: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, str(file), "--model", "any")
    encoded = [ChatTemplate(tokenizer).encode(conversation_from(ROWS[i]["messages"])) for i in (0, 3)]
    num_tokens = sum(len(one.ids) for one in encoded)
    num_targets = sum(int(one.targets.sum()) for one in encoded)
    assert f"learned: {num_targets} of {num_tokens} tokens ({num_targets / num_tokens:.1%})" in out
    assert f"longest {len(encoded[1].ids)}" in out
    assert f"packed: 1 micro-batches of 4096 tokens, {num_tokens / 4096:.1%} full" in out
    assert out.endswith(f"{file}:1, learned text in green:\n{encoded[0].text}\n")  # brackets are no markup


def test_keys_are_changed_as_in_training(
    file: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, str(file), "--model", "any", "data.max_length=30")
    assert "more than the 30 of data.max_length" in out and "1 kept" in out


def test_json_has_an_object_for_every_row(
    file: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in run(capsys, str(file), "--model", "any", "--json").splitlines()]
    assert [row["row"] for row in rows] == [0, 1, 2, 3]
    assert [row["status"] for row in rows] == ["kept", "dropped", "dropped", "kept"]
    assert all(set(row) == {"row", "status", "reason", "ids", "targets"} for row in rows)
    encoded = ChatTemplate(tokenizer).encode(conversation_from(ROWS[0]["messages"]))
    assert rows[0]["ids"] == encoded.ids.tolist() and rows[0]["reason"] is None
    assert rows[0]["targets"] == encoded.targets.astype(int).tolist()
    assert rows[1]["ids"] is None and rows[1]["reason"].startswith("the line is not valid JSON")
    first = run(capsys, str(file), "--model", "any", "--json", "--rows", "2").splitlines()
    assert [json.loads(line) for line in first] == rows[:2]


def test_json_without_a_model(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in run(capsys, str(file), "--json").splitlines()]
    assert rows[0] == {"row": 0, "status": "kept", "reason": None, "ids": None, "targets": None}


def test_run_file(
    file: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"model: any\ndata: {{path: {file}, max_length: 30}}\n")
    assert "more than the 30 of data.max_length" in run(capsys, str(config))
    assert "2 kept" in run(capsys, str(config), "data.max_length=300")


def test_template_file(
    file: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "own.jinja"
    source.write_text("START\n" + CHATML)
    assert "\nSTART\n" in run(capsys, str(file), "--model", "any", f"data.template={source}")
    assert main(["data", "inspect", str(file), "--model", "any", "data.template=none.jinja"]) == 2
    assert "data.template none.jinja cannot be read" in capsys.readouterr().err


def test_wrong_input_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl does not exist" in capsys.readouterr().err


def test_model_is_loaded_by_name(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(file), "--model", "./no-such-model"]) == 2
    assert "no-such-model" in capsys.readouterr().err
