"""`luthier data inspect`: what people and programs read."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from chat_samples import CHATML, byte_level
from luthier.cli import _data_plan as plan
from luthier.cli.main import main
from luthier.data.chat import ChatTemplate
from luthier.data.conversation import conversation_from

ROWS: list[Any] = [
    {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "[b]hi[/b] there"}]},
    "{broken",
    {"messages": [{"role": "human", "content": "hello"}]},
    {"messages": [{"role": "user", "content": "word " * 50}, {"role": "assistant", "content": "yes"}]},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "chats.jsonl", ROWS)


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> PreTrainedTokenizerFast:
    made = byte_level()
    made.chat_template = CHATML
    monkeypatch.setattr(plan, "tokenizer_of", lambda config: made)
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
    assert out.endswith(f"\n{file}:1:\n[user]\nhello\n[assistant]\n[b]hi[/b] there\n")


def test_with_a_model(
    file: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, str(file), "--model", "any")
    encoded = [ChatTemplate(tokenizer).encode(conversation_from(ROWS[i]["messages"])) for i in (0, 3)]
    num_tokens = sum(len(one.ids) for one in encoded)
    num_targets = sum(int(one.targets.sum()) for one in encoded)
    figures = dict(re.findall(r"^(\S.*?)  +(\S.*)$", out, re.MULTILINE))
    assert figures["tokens"] == f"{num_tokens:,}"
    assert figures["learned"] == f"{num_targets / num_tokens:.1%}"
    assert figures["half of the rows"] == f"up to {len(encoded[0].ids)}"
    assert figures["longest row"] == str(len(encoded[1].ids))
    assert figures["micro-batches of 4,096"] == "1"
    assert figures["packing"] == f"{num_tokens / 4096:.1%} full"
    assert out.endswith(f"{file}:1, learned text in green:\n{encoded[0].text}\n")  # brackets are no markup
    assert "an answer is asked for with: '<|im_start|>assistant\\n'" in out


def test_keys_are_changed_as_in_training(
    file: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, str(file), "--model", "any", "data.max_length=30")
    assert "more than the 30 of data.max_length" in out and "1 kept" in out
    longest = len(ChatTemplate(tokenizer).encode(conversation_from(ROWS[3]["messages"])).ids)
    assert f"longest row{longest:>14}".split() == re.findall(r"longest row +\d+", out)[0].split()
    assert "50.0% of the rows are longer than data.max_length (30) and are dropped" in out
    out = run(capsys, str(file), "--model", "any", "data.max_length=30", "data.overlong=split")
    assert (
        "50.0% of the rows are longer than data.max_length (30) and are split, where that is possible" in out
    )


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


def test_judged_answers_are_shown_one_by_one(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "pairs.jsonl", [{"prompt": "well?", "chosen": "good", "rejected": "bad"}])
    out = run(capsys, str(file), "--model", "any", "method=dpo")
    assert out.count("[chosen]\n") == out.count("[rejected]\n") == 1
    assert out.index("good") < out.index("[rejected]") < out.index("bad")
    (row,) = (
        json.loads(line)
        for line in run(capsys, str(file), "--model", "any", "method=dpo", "--json").splitlines()
    )
    assert row["ids"] is None and len(row["sequences"]) == 2
    texts = [
        tokenizer.decode([i for i, t in zip(one["ids"], one["targets"], strict=True) if t])
        for one in row["sequences"]
    ]
    assert texts == ["good<|im_end|>", "bad<|im_end|>"]
    assert "only the chosen one is learned" in run(capsys, str(file), "--model", "any")


def test_token_ids_on_demand(
    file: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, str(file), "--model", "any", "--ids")
    shown = re.findall(r"^ *(\d+(?: \d+)*) +([01]) +('.*'|\".*\")$", out, re.MULTILINE)
    encoded = ChatTemplate(tokenizer).encode(conversation_from(ROWS[0]["messages"]))
    assert [int(number) for ids, _, _ in shown for number in ids.split()] == encoded.ids.tolist()
    assert "".join(eval(text) for _, _, text in shown) == encoded.text


def test_some_row(file: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, str(file), "--model", "any", "--row", "2", "--row", "3", "--sample", "0")
    assert f"{file}:3 (dropped: message 1 has the unknown role 'human'" in out
    assert f"{file}:4, learned text in green:" in out and f"{file}:1" not in out
    assert main(["data", "inspect", str(file), "--row", "4"]) == 2
    assert "there is no row 4; 4 rows were read, counted from 0" in capsys.readouterr().err


def test_duplicates_are_counted_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.jsonl", [ROWS[0], ROWS[3], ROWS[0], ROWS[0]])
    out = run(capsys, str(file), "--duplicates")
    assert "4 rows: 4 kept" in out and re.search(r"^duplicates +2$", out, re.MULTILINE)
    assert f"note: {file}:3: the row says the same as '{file}:1'" in out
    assert "advice: 2 rows say the same as an earlier one; data.clean.exact_duplicates=true" in out
    out = run(capsys, str(file), "data.clean.exact_duplicates=true")
    assert "4 rows: 2 kept, 0 truncated, 2 dropped (2 of them on purpose)" in out
    assert "training would stop" not in out


def test_several_files_are_counted_each(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "texts.jsonl", [{"text": "plain"}])
    out = run(capsys, str(file), str(other), "--sample", "2")
    assert f"format of {file}: messages" in out and f"format of {other}: text" in out
    assert f"  {file}: 4 rows, 2 kept, 0 truncated, 2 dropped" in out
    assert f"  {other}: 1 rows, 1 kept, 0 truncated, 0 dropped" in out
    assert f"\n{file}:1:" in out and f"\n{other}:1:" in out


def test_a_format_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.jsonl", [{"messages": ROWS[0]["messages"], "text": "plain"}])
    assert "[text]\nplain" in run(capsys, str(file), "--format", "text")
    assert main(["data", "inspect", str(file), "--format", "texd"]) == 2
    assert "did you mean `text`?" in capsys.readouterr().err


def test_overlap_with_held_out_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.jsonl", [{"text": "one two three four"}, {"text": "five six"}])
    held = write(tmp_path / "b.jsonl", [{"text": "zero, two three four"}])
    setting = "data.clean.eval_overlap=3"
    out = run(capsys, str(file), setting, f"data.eval_path={held}")
    assert "1 kept" in out and "'two three four'" in out
    out = run(capsys, str(file), setting)
    assert (
        "2 kept" in out and "note: data.clean.eval_overlap is looked at here only with data.eval_path" in out
    )


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
    tokenizer.chat_template = CHATML
    assert main(["data", "inspect", str(file), "--model", "any", "data.template=none.jinja"]) == 2
    assert "data.template none.jinja cannot be read" in capsys.readouterr().err


def test_wrong_input_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl does not exist" in capsys.readouterr().err
    assert main(["data", "inspect", "data.max_length=3"]) == 2
    assert "no data is named" in capsys.readouterr().err


def test_model_is_loaded_by_name(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(file), "--model", "./no-such-model"]) == 2
    assert "no-such-model" in capsys.readouterr().err


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps the text and what could load something."""

    def __init__(self, content: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.loads: list[str] = []
        self.feed(content)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "action", "srcset")]
        self.loads += [tag] if tag in ("script", "link", "iframe", "img", "object") else []
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)


def test_page(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "</pre><script>alert(1)</script>\" onload='x"
    messages = [{"role": "user", "content": hostile}, {"role": "assistant", "content": "naïve 😀"}]
    file = write(tmp_path / "a<b>.jsonl", [*ROWS, {"messages": messages}])
    page = tmp_path / "page.html"
    assert run(capsys, str(file), "--model", "any", "--html", str(page)).endswith(f"wrote {page}\n")
    parsed = Page(page.read_text())
    assert parsed.loads == []
    text = "".join(parsed.texts)
    assert "5 rows" in text and hostile in text and "naïve 😀" in text
    assert "message 1 has the unknown role 'human'; did you mean 'user'?" in text
    encoded = ChatTemplate(tokenizer).encode(conversation_from(messages))
    assert encoded.text in text
    ids = " ".join(re.findall(r'data-i="([0-9 ]+)"', page.read_text()))
    assert " ".join(map(str, encoded.ids.tolist())) in ids
    missing = str(tmp_path / "none" / "page.html")
    assert main(["data", "inspect", str(file), "--html", missing]) == 1
    assert f"{missing} cannot be written: there is no folder" in capsys.readouterr().err


def test_page_without_a_model(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    run(capsys, str(file), "--html", str(page))
    text = "".join(Page(page.read_text()).texts)
    assert "[b]hi[/b] there" in text and "2 of 4" in text
