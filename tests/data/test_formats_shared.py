"""Real data sets are read with no configuration: the right format, every row accounted for."""

import json
from collections import Counter
from pathlib import Path

import pytest

from luthier.config.data_section import SetSection
from luthier.data.content import Conversation, kind_of
from luthier.data.ledger import Ledger
from luthier.data.pipeline import Pipeline, Plan
from luthier.data.sources import open_source

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
FILES = {
    "alpaca_en_demo.json": ("alpaca", "conversation", 999, 0),
    "c4_demo.jsonl": ("text", "text", 300, 0),
    "dpo_en_demo.json": ("preference", "answers", 300, 0),
    "glaive_toolcall_en_demo.json": ("sharegpt", "conversation", 300, 0),
    "gsm8k_test.jsonl": ("question_answer", "conversation", 1319, 0),
    "gsm8k_train.jsonl": ("question_answer", "conversation", 7473, 0),
    "identity.json": ("alpaca", "conversation", 91, 0),
    "kto_en_demo.json": ("unpaired", "answers", 300, 150),
    "mllm_demo.json": ("", "", 6, 6),
    "reason_tool_use_demo_50.jsonl": ("messages", "conversation", 50, 0),
    "wiki_demo.txt": ("text", "text", 30, 0),
}
"""The format and kind of each file, its rows, and how many of them supervised fine-tuning leaves out."""


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_the_right_format_and_count(name: str) -> None:
    format, kind, num_rows, num_left_out = FILES[name]
    section, ledger = SetSection(path=str(SHARED / name)), Ledger()
    rows = (row for row, _ in open_source([section]).rows())
    pipeline = Pipeline(Plan((section,), None))
    for one in pipeline.prepared(rows):
        one.enter(ledger)
    assert (ledger.read, ledger.dropped, ledger.truncated) == (num_rows, num_left_out, 0)
    assert [dict(counts) for counts in pipeline.notes.formats.values()] == (
        [{format: num_rows}] if format else []
    )
    own = Pipeline(Plan((section,), None, reads=kind)) if kind == "answers" else pipeline  # type: ignore[arg-type]
    rows = (row for row, _ in open_source([section]).rows())
    kinds = Counter(kind_of(one.content) for one in own.prepared(rows) if one.content is not None)
    assert kinds == ({kind: num_rows} if kind else {})


def test_no_file_is_forgotten() -> None:
    others = {"dataset_info.json", "mllm_demo_data"}
    assert {file.name for file in SHARED.iterdir()} == set(FILES) | others


def test_what_is_told_about_them() -> None:
    """Rows left out on purpose are no fault; rows with images are, and say what to do."""
    said = {}
    for name in ("kto_en_demo.json", "dpo_en_demo.json", "mllm_demo.json"):
        section = SetSection(path=str(SHARED / name))
        pipeline = Pipeline(Plan((section,), None))
        prepared = list(pipeline.prepared(row for row, _ in open_source([section]).rows()))
        reasons = {(one.set_aside, (one.reason or "").split(",")[0]) for one in prepared if one.reason}
        said[name] = (pipeline.notes.lines(), reasons)
    assert said["kto_en_demo.json"][1] == {(True, "the answer is labelled as a bad one")}
    assert said["dpo_en_demo.json"][0][0].startswith(
        "preferences: the method imitates answers, so only the chosen"
    )
    assert said["mllm_demo.json"][1] == {
        (False, "the row has `images` (1)"),
        (False, "the row has `images` (2)"),
    }


def test_reasoning_and_calls_of_the_demo_with_tools() -> None:
    """Every part of every message is found again in the fields of the message that was read."""
    section = SetSection(path=str(SHARED / "reason_tool_use_demo_50.jsonl"))
    raw = [json.loads(line) for line in Path(section.path).read_text(encoding="utf-8").splitlines()]
    prepared = Pipeline(Plan((section,), None)).prepared(row for row, _ in open_source([section]).rows())
    num_calls = 0
    for given, one in zip(raw, prepared, strict=True):
        assert isinstance(one.content, Conversation) and one.content.tools == (
            json.loads(given["tools"]) or None
        )
        for old, new in zip(given["messages"], one.content.messages, strict=True):
            of = {
                kind: [p["value"] for p in old["content"] if p["type"] == kind]
                for kind in ("text", "reasoning")
            }
            assert (new["content"] or "") == "".join(of["text"])
            assert new.get("reasoning_content", "") == "".join(of["reasoning"])
            calls = [json.loads(part["value"]) for part in old["content"] if part["type"] == "tool_call"]
            assert [call["function"] for call in new.get("tool_calls", [])] == calls
            num_calls += len(calls)
    assert num_calls == 68
