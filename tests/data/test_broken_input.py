"""Broken input: every kind has a message of its own that says where it is, in which field, and what is wrong."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from luthier.config.data_section import SetSection
from luthier.data.ledger import Ledger
from luthier.data.pipeline import Pipeline, Plan
from luthier.data.sources import open_source
from luthier.errors import DataError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CHAT = [USER, ANSWER]


def answered(**more: Any) -> dict[str, Any]:
    return {"messages": [USER, {**ANSWER, **more}]}


def called(*calls: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": list(calls)}]}


def parts(*content: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": list(content)}]}


TEXT, THOUGHT = {"type": "text", "text": "t"}, {"type": "reasoning", "text": "r"}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
STEPS = {"prompt": "q", "completions": ["a", "b"], "labels": [1, 0]}
RANKS = {"prompt": "q", "answers": ["a", "b"], "scores": [1, 0]}
BROKEN: list[tuple[str, Any, str]] = [
    ("a line cut short", '{"messages": [{"role": ', "column"),
    ("a line of another kind", "[1, 2]", "columns"),
    ("unknown columns", {"foo": 1, "bar": 2}, "`foo`"),
    ("a column's name with a typo", {"mesages": CHAT}, "`messages` by `mesages`"),
    ("two formats at once", {"messages": CHAT, "prompt": "p", "completion": "c"}, "prompt, completion"),
    ("null messages", {"messages": None}, "`messages` is null"),
    ("messages in an object", {"messages": {"user": "q"}}, "`messages` is an object"),
    ("messages as text", {"messages": "q: hi"}, "messages is text that is not JSON"),
    ("no message", {"messages": []}, "conversation is empty"),
    ("a message as text", {"messages": ["q"]}, "message 1 is text"),
    (
        "no role",
        {"messages": [{"speaker": "me", "content": "q"}, ANSWER]},
        "no `role`; its fields are content, speaker",
    ),
    ("another role", {"messages": [USER, {"role": "asistant", "content": "a"}]}, "did you mean 'assistant'"),
    ("a role of no kind", {"messages": [{"role": "???", "content": "q"}, ANSWER]}, "must be one of system"),
    ("a number as content", answered(content=5), "message 2 .assistant. has a content that is a number"),
    ("an image in the content", parts({"type": "image", "url": "x"}), "content part of type 'image'"),
    ("a part of no known type", parts({"type": "refusal", "refusal": "x"}), "content part of type 'refusal'"),
    ("a part that is text", parts("hello"), "part 1 of its content"),
    ("a part without text", parts({"type": "text"}), "text part without `text`"),
    ("reasoning behind the text", parts(TEXT, THOUGHT), "part 2 is reasoning"),
    (
        "text behind a call",
        parts({"type": "tool_call", "value": CALL}, TEXT),
        "part 2 is text after a tool call",
    ),
    ("half a message weighted", parts(TEXT, {**TEXT, "train": False}), "part 2 has a `train`"),
    (
        "reasoning twice",
        {"messages": [USER, {**parts(THOUGHT)["messages"][1], "thinking": "r"}]},
        "in `thinking`",
    ),
    ("reasoning that is a number", answered(reasoning_content=3), "`reasoning_content` that is a number"),
    ("a message that says nothing", answered(content=None), "neither text nor tool calls"),
    (
        "a user who calls tools",
        {"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]},
        "has `tool_calls`; only",
    ),
    ("calls in an object", answered(tool_calls={}), "`tool_calls` that are an object"),
    ("a call without a name", called({"function": {}}), "tool call 1 has no function `name`"),
    (
        "arguments that are no JSON",
        called({"name": "f", "arguments": "{x"}),
        "`arguments` of tool call 1 is text",
    ),
    (
        "arguments in a list",
        called(CALL, {"name": "f", "arguments": [1]}),
        "`arguments` of tool call 2 is a list",
    ),
    ("train: no", answered(train="no"), "`train: 'no'`"),
    ("a weight below 0", answered(weight=-1), "`weight: -1`"),
    ("a weight in quotes", answered(weight="1"), "`weight` is text"),
    (
        "a weight without bounds",
        '{"messages": [{"role": "assistant", "content": "a", "weight": 1e999}]}',
        "finite",
    ),
    ("nothing to learn", answered(weight=0), "all targets masked"),
    ("nobody answers", {"messages": [USER]}, "no assistant message"),
    ("tools that are no JSON", {"messages": CHAT, "tools": "f(x)"}, "`tools` is text that is not JSON"),
    ("tools in an object", {"messages": CHAT, "tools": {"f": 1}}, "`tools` is an object"),
    (
        "tools twice",
        {"messages": CHAT, "tools": [CALL], "functions": [{"name": "f"}]},
        "`tools` and `functions`",
    ),
    ("variables as text", {"messages": CHAT, "chat_template_kwargs": "x"}, "`chat_template_kwargs` is text"),
    (
        "two system prompts",
        {"messages": [{"role": "system", "content": "a"}, *CHAT], "system": "b"},
        "`system` and the",
    ),
    ("a system prompt in a list", {"messages": CHAT, "system": ["b"]}, "`system` is a list"),
    ("images", {"messages": CHAT, "images": ["x.png"]}, "`images` .1."),
    (
        "a call of ShareGPT that is no JSON",
        {"conversations": [{"from": "function_call", "value": "f()"}]},
        "the call is",
    ),
    ("a number as completion", {"prompt": "q", "completion": 4}, "`completion` is neither text nor"),
    ("an empty completion", {"prompt": "q", "completion": []}, "`completion` is an empty list"),
    ("no output", {"instruction": "q", "output": None}, "`output` is null"),
    ("an input in a list", {"instruction": "q", "input": ["x"], "output": "a"}, "`input` is a list"),
    (
        "nothing asked",
        {"instruction": "", "input": "", "output": "a"},
        "`instruction` and `input` are both empty",
    ),
    ("half an exchange", {"instruction": "q", "output": "a", "history": [["q"]]}, "exchange 1 of `history`"),
    (
        "a history in an object",
        {"instruction": "q", "output": "a", "history": {"q": "a"}},
        "`history` is an object",
    ),
    ("equal answers", {**PAIR, "rejected": "a"}, "`chosen` and `rejected` say the same"),
    ("a conversation against an answer", {**PAIR, "chosen": CHAT}, "`chosen` is a whole conversation"),
    ("answers to nothing", {"chosen": "a", "rejected": "b"}, "not known what was asked"),
    ("an answer of the user", {**PAIR, "chosen": [ANSWER, USER]}, "`chosen` ends with a message of the user"),
    ("a score in words", {**PAIR, "score_chosen": "high", "score_rejected": 1}, "`score_chosen` is text"),
    ("a margin in words", {**PAIR, "margin": "wide"}, "`margin` is text"),
    (
        "answers with weights",
        {**PAIR, "rejected": [{**ANSWER, "weight": 0}]},
        "`rejected` has messages with weights",
    ),
    ("a topic as label", {"messages": CHAT, "label": "sport"}, "`label` is 'sport'"),
    ("a label without an answer", {"messages": [USER], "label": True}, "`messages` has no answer of its own"),
    ("steps as text", {**STEPS, "completions": "a"}, "`completions` is text"),
    ("no steps", {**STEPS, "completions": [], "labels": []}, "`completions` is an empty list"),
    ("more steps than labels", {**STEPS, "labels": [1]}, "`completions` has 2 steps, `labels` has 1"),
    ("a step that is a number", {**STEPS, "completions": ["a", 2]}, "step 2 of `completions` is a number"),
    ("a label that is text", {**STEPS, "labels": [1, "no"]}, "label 2 of `labels` is text"),
    ("one answer to rank", {**RANKS, "answers": ["a"]}, "`answers` has 1"),
    ("more answers than scores", {**RANKS, "scores": [1]}, "`scores` has 1 values, `answers` has 2"),
    ("ids as text", {"input_ids": "1 2"}, "`input_ids` is text"),
    ("an id with a fraction", {"input_ids": [1, 2.5]}, "`input_ids` holds a number at position 2"),
    ("an id below 0", {"input_ids": [1, -2]}, "`input_ids` holds -2 at position 2"),
    ("an id too large", {"input_ids": [2**40]}, "`input_ids` holds a number that is too large"),
    ("shifted labels", {"input_ids": [1, 2], "labels": [2, -100]}, "`labels` has 2 where `input_ids` has 1"),
    ("fewer labels than ids", {"input_ids": [1, 2], "labels": [1]}, "`labels` has 1 values"),
    ("only masked ids", {"input_ids": [1, 2], "labels": [-100, -100]}, "no id of `input_ids`"),
    ("segments as text", {"segments": "t"}, "`segments` is text"),
    ("a segment as text", {"segments": ["t"]}, "segment 1 is text"),
    ("a segment without a label", {"segments": [{"text": "t"}]}, "segment 1 has a `label` that is null"),
    ("a segment without text", {"segments": [{"label": True}]}, "segment 1 has a `text` that is null"),
    ("only masked segments", {"segments": [{"text": "t", "label": False}]}, "no segment of `segments`"),
    ("no text", {"text": ""}, "`text` is empty"),
    ("a number as text", {"text": 3}, "`text` is a number"),
    ("one message a row", {"role": "user", "content": "q"}, "one message with `role` and `content`"),
]


def complaint(file: Path, **options: Any) -> tuple[str, Ledger]:
    """What is said about a file's broken rows, or about the file, and the account of its rows."""
    section, ledger, said = SetSection(path=str(file), **options), Ledger(), []
    try:
        source = open_source([section])
        for one in Pipeline(Plan((section,), None)).prepared(row for row, _ in source.rows()):
            one.enter(ledger)
            said += [f"{one.row.where}: {one.reason}"] if one.reason else []
    except DataError as error:
        said = [str(error)]
    assert ledger.read == ledger.kept + ledger.truncated + ledger.dropped
    return "\n".join(said), ledger


def broken_third(folder: Path, broken: Any) -> Path:
    """A file of four good rows, with a broken one in its third line."""
    good = json.dumps({"messages": CHAT})
    line = broken if isinstance(broken, str) else json.dumps(broken)
    file = folder / "rows.jsonl"
    file.write_text("\n".join([good, good, line, good, good]) + "\n")
    return file


@pytest.mark.parametrize(
    ("broken", "field"), [(row, field) for _, row, field in BROKEN], ids=[b[0] for b in BROKEN]
)
def test_a_broken_row_is_named_with_its_place_and_field(broken: Any, field: str, tmp_path: Path) -> None:
    file = broken_third(tmp_path, broken)
    said, ledger = complaint(file)
    assert said.startswith(f"{file}:3: ") and re.search(field, said), said
    assert (ledger.kept, ledger.dropped) == (4, 1) and next(iter(ledger.examples.values()))[0][
        0
    ] == f"{file}:3"


def test_every_kind_has_words_of_its_own(tmp_path: Path) -> None:
    """Told apart even with all numbers and quoted names taken out, as the ledger counts them."""
    ledger = Ledger()
    for _, broken, _ in BROKEN:
        for kind, count in complaint(broken_third(tmp_path, broken))[1].reasons.items():
            ledger.reasons[kind] += count
    shared = {kind: count for kind, count in ledger.reasons.items() if count > 1}
    assert len(BROKEN) >= 70 and len(ledger.reasons) >= len(BROKEN) - 4, shared


FILES: list[tuple[str, bytes, str]] = [
    ("empty.jsonl", b"", "is empty"),
    ("rows.xlsx", b"PK", "is of an unknown kind"),
    ("broken.parquet", b"PAR1 and no more", "parquet"),
    ("cut.json", b'[{"messages": ', "is not valid JSON"),
    ("two.json", b'{"a": [1], "b": [2]}', "`a`, `b`"),
    (
        "odd.jsonl",
        b'{"foo": 1}\n{"bar": 2}\n',
        "no known format has the columns that were found: `foo`, `bar`",
    ),
    ("both.jsonl", b'{"question": "q", "answer": "a", "prompt": "p"}\n', "columns of several formats"),
    ("packed.jsonl.gz", b"not packed", "gzip"),
]


@pytest.mark.parametrize(("name", "content", "reason"), FILES, ids=[file[0] for file in FILES])
def test_a_broken_file_is_named(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    said, _ = complaint(tmp_path / name)
    assert str(tmp_path / name) in said and re.search(reason, said), said


def test_reasons_use_the_data_sets_own_names(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"ask": "q", "reply": "a"}\n{"ask": "q", "reply": null}\n{"ask": "q"}\n')
    said, _ = complaint(file, columns={"instruction": "ask", "output": "reply"}, format="alpaca")
    assert said.splitlines() == [
        f"{file}:2: `reply` is null, not text",
        f"{file}:3: the row has no `reply`; its fields are `ask`",
    ]
