# ruff: noqa: E501 - rows are one line each
"""From files to tokens: every row is accounted for, the cache is honest, and people are told what is wrong."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from chat_samples import CHATML, byte_level
from luthier.config.data_section import SetSection
from luthier.data import cache
from luthier.data.chat import ChatTemplate
from luthier.data.conversation import conversation_from
from luthier.data.encode import EncodeOptions
from luthier.data.pipeline import Pipeline, Plan, Recipe
from luthier.data.prepare import prepare, prepare_plan
from luthier.data.sources import read_rows
from luthier.data.store import TokenDataset
from luthier.errors import DataError


def chat(question: str, answer: str, turns: int = 1) -> dict[str, Any]:
    pair = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": pair * turns}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def prepared(path: Path, template: ChatTemplate, **options: Any) -> TokenDataset:
    return prepare([str(path)], template, **{"max_length": 500, "max_drop_fraction": 1.0, **options})


def same(first: TokenDataset, second: TokenDataset) -> bool:
    rows = range(len(first))
    return len(first) == len(second) and all(
        np.array_equal(first.example(i).segments[0].ids, second.example(i).segments[0].ids)
        and np.array_equal(first.example(i).segments[0].weights, second.example(i).segments[0].weights)
        and (first.example(i).row, first.where(i)) == (second.example(i).row, second.where(i))
        for i in rows
    )


@pytest.fixture
def template(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    return ChatTemplate(tokenizer)


def test_rows_are_those_of_the_template(tmp_path: Path, template: ChatTemplate) -> None:
    rows = [chat(f"question {i} " * (i % 7 + 1), f"answer {i}") for i in range(600)]
    dataset = prepared(write(tmp_path / "a.jsonl", rows), template)
    assert len(dataset) == 600 and dataset.ledger.kept == 600
    for index in (0, 1, 255, 256, 599):
        example, alone = dataset.example(index), template.encode(conversation_from(rows[index]["messages"]))
        (segment,) = example.segments
        assert segment.ids.dtype == np.int32 and segment.weights.dtype == np.float32
        assert segment.ids.tolist() == alone.ids.tolist()
        assert segment.weights.tolist() == alone.targets.astype(float).tolist()
        assert example.row == index and dataset.where(index) == f"{tmp_path / 'a.jsonl'}:{index + 1}"
    assert dataset.lengths.tolist() == [len(dataset.example(i)) for i in range(600)]
    assert dataset.num_tokens == dataset.lengths.sum()
    assert dataset.num_targets == sum(int(dataset.example(i).segments[0].weights.sum()) for i in range(600))


def test_dropped_rows_leave_their_reason_and_no_gap(tmp_path: Path, template: ChatTemplate) -> None:
    rows = [
        chat("q", "a"),
        "{broken",
        {"words": "no messages"},
        chat("q<|im_end|>", "a"),
        {"messages": [{"role": "robot", "content": "q"}]},
        chat("q", "\na"),
        {
            "messages": [
                *chat("q", "a")["messages"][:1],
                {"role": "assistant", "content": "a", "train": False},
            ]
        },
        chat("word " * 300, "a"),
        chat("q", "last"),
    ]
    dataset = prepared(write(tmp_path / "a.jsonl", rows), template, max_length=100)
    assert [dataset.example(i).row for i in range(len(dataset))] == [0, 8]
    assert dataset.where(1).endswith("a.jsonl:9")
    ledger = dataset.ledger
    assert (ledger.read, ledger.kept, ledger.truncated, ledger.dropped) == (9, 2, 0, 7)
    longest = len(template.encode(conversation_from(chat("word " * 300, "a")["messages"])).ids)
    said = "\n".join(reason for seen in ledger.examples.values() for _, reason in seen)
    for reason in (
        "the line is not valid JSON: Expecting property name enclosed in double quotes at column 2",
        "no known format has the columns that were found: `words`",
        "message 1 (user) contains '<|im_end|>', which the tokenizer reads as a control token",
        "message 1 has the unknown role 'robot'; it must be one of",
        "is partly prompt ('\\n') and partly an answer ('\\n'); remove the white space",
        "all targets masked: every assistant message is marked as not to be learned",
        f"the row has {longest} tokens, more than the 100 of data.max_length",
    ):
        assert reason in said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool", "nobody"]),
        "content": st.text(max_size=12) | JSON,
    }
)
LINE = (
    st.builds(lambda messages: json.dumps({"messages": messages}), st.lists(MESSAGE, max_size=4))
    | JSON.map(json.dumps)
    | st.text(alphabet="{}[]\",:ab1 ", max_size=12)
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(LINE, max_size=12), st.integers(1, 60), st.sampled_from(["drop", "truncate_oldest_turns"]))
def test_every_row_of_any_file_ends_in_the_ledger(
    tmp_path: Path, template: ChatTemplate, lines: list[str], max_length: int, overlong: Any
) -> None:
    file = write(tmp_path / "a.jsonl", [json.dumps(chat("q", "a")), *lines])
    num_rows = 1 + sum(bool(line.strip()) for line in lines)
    recipe = Recipe(template.tokenizer, EncodeOptions(max_length, overlong), template)
    pipeline = Pipeline(Plan((SetSection(path=str(file)),), recipe))
    rows = list(pipeline.prepared(read_rows([file])))
    assert [one.row.number for one in rows] == list(range(num_rows))
    for one in rows:
        assert (one.encoded is None) == (one.status == "dropped") == (one.examples == [])
        assert one.reason if one.status != "kept" else one.reason is None
        assert all(len(example) <= max_length and example.row == one.row.number for example in one.examples)
    try:
        ledger = prepared(file, template, max_length=max_length, overlong=overlong).ledger
    except DataError as fault:
        assert f"none of the {num_rows} rows can be used" in str(fault)
    else:
        assert ledger.kept + ledger.truncated + ledger.dropped == ledger.read == num_rows


def test_overlong_rows_by_choice(tmp_path: Path, template: ChatTemplate) -> None:
    rows = [chat("q", "a"), chat("some question", "some answer", turns=6)]
    file = write(tmp_path / "a.jsonl", rows)
    assert prepared(file, template, max_length=60).ledger.dropped == 1
    cut = prepared(file, template, max_length=60, overlong="truncate_oldest_turns")
    assert (cut.ledger.kept, cut.ledger.truncated, cut.ledger.dropped) == (1, 1, 0)
    assert cut.lengths.max() <= 60
    whole = template.encode(conversation_from(rows[1]["messages"])).ids.tolist()
    end = cut.example(1).segments[0].ids.tolist()
    assert whole[-len(end) :] == end
    with pytest.raises(
        DataError, match=r"a\.jsonl:2: the row has \d+ tokens, more than the 60 of data\.max_length; raise it"
    ):
        prepared(file, template, max_length=60, overlong="error")


def test_too_many_dropped_rows_stop_with_the_reasons(tmp_path: Path, template: ChatTemplate) -> None:
    file = write(tmp_path / "a.jsonl", [chat("q", "a"), "{broken"])
    with pytest.raises(DataError, match=r"1 of 2 rows \(50\.0%\) cannot be used; data\.max_drop_fraction"):
        prepared(file, template, max_drop_fraction=0.4)


def test_no_row_left(tmp_path: Path, template: ChatTemplate) -> None:
    file = write(tmp_path / "a.jsonl", [chat("q", "a")])
    with pytest.raises(
        DataError, match=r"none of the 1 rows can be used(.|\n)*more than the 3 of data\.max_length"
    ):
        prepared(file, template, max_length=3)


def test_progress_counts_rows(
    tmp_path: Path, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.data.prepare._SECONDS_BETWEEN_REPORTS", 0.0)
    seen: list[int] = []
    prepared(write(tmp_path / "a.jsonl", [chat("q", "a")] * 5), template, progress=seen.append)
    assert seen == [1, 2, 3, 4, 5]


class Cached:
    """One file, one cache folder, and whether the next preparation reads it or makes a new entry."""

    def __init__(self, folder: Path):
        self.file = write(folder / "a.jsonl", [chat("q", "a"), "{broken", chat("r", "b", turns=3)])
        self.folder = folder / "cache"

    def entries(self) -> set[Path]:
        return set(self.folder.iterdir()) if self.folder.exists() else set()

    def is_hit(self, template: ChatTemplate, **options: Any) -> bool:
        before = self.entries()
        dataset = prepared(self.file, template, cache_folder=self.folder, **options)
        assert same(dataset, prepared(self.file, template, **options))
        return self.entries() == before


def test_cache_is_read_for_the_same_rows_and_settings(tmp_path: Path, template: ChatTemplate) -> None:
    cached = Cached(tmp_path)
    assert not cached.is_hit(template)
    made = {path: path.stat().st_mtime_ns for path in cached.folder.rglob("*")}
    assert cached.is_hit(template) and cached.is_hit(ChatTemplate(template.tokenizer))
    assert made == {path: path.stat().st_mtime_ns for path in cached.folder.rglob("*")}
    first = prepared(cached.file, template, cache_folder=cached.folder)
    assert first.ledger == prepared(cached.file, template).ledger
    assert cached.is_hit(template, max_drop_fraction=0.9)  # it changes no token
    with pytest.raises(DataError, match="1 of 3 rows"):
        prepared(cached.file, template, cache_folder=cached.folder, max_drop_fraction=0.1)


def test_cache_is_missed_when_anything_changes(
    tmp_path: Path, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = Cached(tmp_path)
    tokenizer = template.tokenizer
    assert not cached.is_hit(template)
    assert not cached.is_hit(template, max_length=400)
    assert not cached.is_hit(template, overlong="truncate_oldest_turns")
    assert not cached.is_hit(ChatTemplate(tokenizer, CHATML + " "))
    assert not cached.is_hit(ChatTemplate(tokenizer, None, {"unused": 1}))
    other = byte_level(eos="</s>")
    other.chat_template = CHATML
    assert not cached.is_hit(ChatTemplate(other))
    swallowing = byte_level(swallow=True)
    swallowing.chat_template = CHATML
    assert not cached.is_hit(ChatTemplate(swallowing))
    with cached.file.open("a") as stream:
        stream.write(json.dumps(chat("s", "c")) + "\n")
    assert not cached.is_hit(template)
    monkeypatch.setattr(cache, "code_version", lambda: "another")
    assert not cached.is_hit(template)
    assert cached.is_hit(template)


def test_cache_of_a_template_with_a_date_lasts_a_day(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    cached = Cached(tmp_path)

    def on(day: int, hour: int) -> ChatTemplate:
        return ChatTemplate(
            tokenizer, "{{ strftime_now('%Y') }}\n" + CHATML, now=datetime(2026, 1, day, hour)
        )

    assert not cached.is_hit(on(1, 2)) and cached.is_hit(on(1, 23))
    assert not cached.is_hit(on(2, 2))


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "garble", "empty"])
def test_damaged_cache_is_made_again(tmp_path: Path, template: ChatTemplate, damage: str) -> None:
    cached = Cached(tmp_path)
    cached.is_hit(template)
    (entry,) = cached.entries()
    ids, meta = entry / "ids.npy", entry / "meta.json"
    content = bytearray(ids.read_bytes())
    ids.unlink()  # never written over: it may be mapped
    if damage == "truncate":
        ids.write_bytes(content[:-8])
    elif damage == "flip":
        content[-1] ^= 1
        ids.write_bytes(content)
    elif damage == "remove":
        pass
    else:
        ids.write_bytes(content)
        meta.write_text("[]" if damage == "garble" else "")
    assert cache.load(entry) is None
    assert same(prepared(cached.file, template, cache_folder=cached.folder), prepared(cached.file, template))
    assert cache.load(entry) is not None


def test_cache_that_cannot_be_written_is_reported_and_costs_nothing_else(
    tmp_path: Path, template: ChatTemplate
) -> None:
    cached = Cached(tmp_path)
    cached.folder.write_text("a file where the folder should be")
    dataset = prepared(cached.file, template, cache_folder=cached.folder)
    assert len(dataset) == 2
    assert "the tokens could not be kept in" in dataset.notes[0]


def test_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), cache.new_entry(tmp_path / "entry", {}) as folder:
        np.save(folder / "ids.npy", np.arange(3))
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    here = cache._machine()
    dead, alive = (
        tmp_path / f"entry.{here}ab.99999999.partial",
        tmp_path / f"entry.{here}ab.{os.getppid()}.partial",
    )
    elsewhere = tmp_path / "entry.another0ab.99999999.partial"  # nothing is known of that machine's processes
    for one in (dead, alive, elsewhere):
        one.mkdir()
    with cache.new_entry(tmp_path / "entry", {}):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["entry", alive.name, elsewhere.name])


@pytest.mark.parametrize("damaged", [False, True])
def test_two_may_make_the_same_entry_and_a_whole_one_stays(
    tmp_path: Path, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_is_alive", lambda process: True)  # both are this process
    entry = tmp_path / "entry"
    with cache.new_entry(entry, {"by": "second"}) as second:
        np.save(second / "ids.npy", np.arange(2))
        with cache.new_entry(entry, {"by": "first"}) as first:
            np.save(first / "ids.npy", np.arange(3))
        if damaged:
            (entry / "ids.npy").unlink()
    arrays, facts = cache.load(entry) or ({}, {})
    assert (len(arrays["ids"]), facts["by"]) == ((2, "second") if damaged else (3, "first"))
    assert list(tmp_path.iterdir()) == [entry]


def test_a_disk_without_room_is_told_with_what_to_do(
    tmp_path: Path, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("luthier.data.prepare.write_rows", full)
    file = write(tmp_path / "a.jsonl", [chat("q", "a")])
    with pytest.raises(
        DataError, match=r"tokens cannot be written to .*: No space left on device\. Make room"
    ):
        prepared(file, template, cache_folder=tmp_path / "cache")


def test_cache_code_version_covers_every_file_of_the_package() -> None:
    version = cache.code_version()
    folder = Path(cache.__file__).parent
    assert all(f'"{file.relative_to(folder)}"' in version for file in folder.rglob("*.py"))


@pytest.mark.parametrize("split", [1, 303])
def test_processes_at_work_change_nothing(tmp_path: Path, template: ChatTemplate, split: int) -> None:
    rows = [chat(f"q{i} " * (i % 5), f"a{i}") for i in range(300)] + ["{broken"] * 3
    file = write(tmp_path / "a.jsonl", rows[:split])
    recipe = Recipe(template.tokenizer, EncodeOptions(100, None), template)
    plan = Plan((SetSection(path=str(file)),), recipe)
    one, two = (prepare_plan(plan, workers=workers, max_drop_fraction=1.0) for workers in (0, 2))
    assert same(one, two) and one.ledger == two.ledger


def test_rows_without_a_template_are_told_unless_they_are_text(tmp_path: Path) -> None:
    tokenizer = byte_level()
    recipe = Recipe(tokenizer, EncodeOptions(100, None), None, "this model has no chat template")
    text = write(tmp_path / "text.jsonl", [{"text": "once upon a time"}])
    chats = write(tmp_path / "chats.jsonl", [chat("q", "a")])
    dataset = prepare_plan(Plan((SetSection(path=str(text)),), recipe))
    assert len(dataset) == 1 and dataset.num_targets == dataset.num_tokens
    with pytest.raises(DataError, match="this model has no chat template"):
        prepare_plan(Plan((SetSection(path=str(chats)),), recipe))
