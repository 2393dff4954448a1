"""`luthier data convert`: canonical files that say the same, whole or not at all, with nothing lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.config.data_section import SetSection
from luthier.data.canonical import same
from luthier.data.convert import convert_row, formats_of
from luthier.data.sources import read_rows

ROWS: list[Any] = [
    {"instruction": "Add.", "input": "1 + 1", "output": "2", "system": "Be brief."},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
    {"question": "why?", "answer": "because"},
    {"text": "plain\n“text”", "id": 7},
    {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 2, "score_rejected": 1},
    {"prompt": "q", "completion": "a", "label": False},
    {"prompt": "q", "answers": ["worst", "best"], "scores": [1, 3]},
    {"prompt": "q", "completions": ["one", "two"], "labels": [True, False]},
    {"prompt": "only a question", "level": 3},
    {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
    {"segments": [{"text": "raw ", "label": False}, {"text": "learned", "label": True}]},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def contents(path: Path) -> list[Any]:
    section = SetSection(path=str(path))
    formats = formats_of(section)
    return [convert_row(row, section, formats) for row in read_rows([path])]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def convert(*arguments: str) -> int:
    return main(["data", "convert", *arguments])


def test_every_kind_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "raw.jsonl", ROWS), tmp_path / "out.jsonl"
    assert convert(str(source), "-o", str(out)) == 0
    assert f"{len(ROWS)} rows: {len(ROWS)} kept" in capsys.readouterr().err
    before, after = contents(source), contents(out)
    assert len(before) == len(after) and all(same(a, b) for a, b in zip(before, after, strict=True))
    assert records(out)[1] == {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    }
    again = tmp_path / "again.jsonl"
    assert convert(str(out), "-o", str(again)) == 0
    assert again.read_bytes() == out.read_bytes(), "canonical rows stay as they are"
    assert files(tmp_path) == ["again.jsonl", "out.jsonl", "raw.jsonl"]


def test_refused_rows_go_beside_with_their_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"messages": [{"role": "human", "content": "x"}]}
    source = write(tmp_path / "raw.jsonl", [ROWS[0], "{broken", wrong, ROWS[0]])
    out, refused = tmp_path / "out.jsonl", tmp_path / "out.refused.jsonl"
    assert convert(str(source), "-o", str(out), "data.clean.exact_duplicates=true") == 0
    err = capsys.readouterr().err
    assert "4 rows: 1 kept, 0 truncated, 3 dropped (1 of them on purpose)" in err and str(refused) in err
    told = records(refused)
    assert [one["where"] for one in told] == [f"{source}:2", f"{source}:3", f"{source}:4"]
    assert [one["on_purpose"] for one in told] == [False, False, True]
    assert [one["row"] for one in told] == [None, wrong, ROWS[0]]
    assert "did you mean 'user'?" in told[1]["reason"]
    assert len(records(out)) + len(told) == 4
    assert convert(str(write(source, [ROWS[0]])), "-o", str(out), "--force") == 0
    assert not refused.exists(), "nothing was refused this time"


def test_standard_output_holds_rows_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "raw.jsonl", [ROWS[2], "{broken", ROWS[3]])
    assert convert(str(source), "-o", "-") == 0
    out, err = capsys.readouterr()
    assert [set(json.loads(line)) for line in out.splitlines()] == [{"messages"}, {"text", "id"}]
    assert "3 rows: 2 kept" in err and "not valid JSON" in err
    assert files(tmp_path) == ["raw.jsonl"]


def test_nothing_is_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "raw.jsonl", ROWS), tmp_path / "out.jsonl"
    out.write_text("mine")
    assert convert(str(source), "-o", str(out)) == 2
    assert f"{out} is there already; choose another name, or give --force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    (tmp_path / "new.refused.jsonl").write_text("mine")
    assert convert(str(source), "-o", str(tmp_path / "new.jsonl")) == 2
    assert convert(str(source), "-o", str(source), "--force") == 2
    assert "is one of the files that are read" in capsys.readouterr().err
    assert convert(str(source), "-o", str(tmp_path)) == 2
    assert convert(str(source), "-o", str(tmp_path / "none" / "a.jsonl")) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert convert(str(source), "-o", str(out), "--force") == 0
    assert len(records(out)) == len(ROWS)


def test_a_failure_leaves_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    source = write(tmp_path / "raw.json", ['[{"text": "a"}, {"text": "b"'])
    assert convert(str(source), "-o", str(out), "--force") == 2
    assert "raw.json" in capsys.readouterr().err
    assert out.read_text() == "mine" and files(tmp_path) == ["out.jsonl", "raw.json"]


def test_no_row_is_an_error_with_the_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "raw.jsonl", [{"messages": []}, {"messages": 3}])
    assert convert(str(source), "-o", str(tmp_path / "out.jsonl")) == 2
    err = capsys.readouterr().err
    assert "none of the 2 rows can be used" in err and "the conversation is empty" in err
    assert files(tmp_path) == ["raw.jsonl"]


def test_first_rows_and_a_format_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    source, out = (
        write(tmp_path / "raw.jsonl", [{"messages": turns, "text": "t"}] * 5),
        tmp_path / "out.jsonl",
    )
    assert convert(str(source), "-o", str(out), "--rows", "2") == 0
    assert [set(record) for record in records(out)] == [{"messages"}] * 2
    assert convert(str(source), "-o", str(out), "--force", "--format", "text") == 2
    assert "the row would say something else when it is read again" in capsys.readouterr().err
