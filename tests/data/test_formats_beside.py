"""What stands beside a question belongs to it in every format; nothing of a row is lost in silence."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.config.data_section import SetSection
from luthier.data.content import Answers, Conversation, Prompt
from luthier.data.convert import convert_row, formats_of
from luthier.data.pipeline import Pipeline, Plan
from luthier.data.sources import Row
from luthier.errors import RowRefused

WORDS = st.text("abc xyz.", min_size=1, max_size=12).map(str.strip).filter(bool)
ANSWERS: list[tuple[str, dict[str, Any]]] = [
    ("prompt", {"completion": "A"}),
    ("query", {"response": "A"}),
    ("question", {"answer": "A"}),
    ("prompt", {"completion": "A", "label": True}),
    ("prompt", {"chosen": "A", "rejected": "B"}),
    ("question", {"chosen": "A", "rejected": "B"}),
    ("prompt", {"answers": ["A", "B"], "scores": [2, 1]}),
]
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def said(record: dict[str, Any], **options: Any) -> Any:
    section = SetSection(path="x", **options)
    return convert_row(Row(0, "x", 1, record), section, formats_of(section))


def asked(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What stands before the last answer of a row."""
    content = said(record)
    assert isinstance(content, Answers | Conversation)
    messages = content.context if isinstance(content, Answers) else content.messages[:-1]
    return [(message["role"], message["content"]) for message in messages]


@pytest.mark.parametrize(("column", "answers"), ANSWERS)
@given(question=WORDS, beside=st.dictionaries(st.sampled_from(["input", "context"]), WORDS), past=WORDS)
def test_every_question_in_a_text_has_what_an_instruction_has(
    column: str, answers: dict[str, Any], question: str, beside: dict[str, str], past: str
) -> None:
    rest = {**beside, "history": [[past, "ok"]]}
    assert asked({column: question, **answers, **rest}) == asked(
        {"instruction": question, "output": "A", **rest}
    )


@pytest.mark.parametrize("name", ["input", "context", "history"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS, "label": True},
        {"messages": TURNS[:1], "chosen": "A", "rejected": "B"},
        {"chosen": [*TURNS], "rejected": [TURNS[0], {"role": "assistant", "content": "no"}]},
        {"prompt": TURNS[:1], "completion": "A"},
        {"prompt": TURNS[:1], "chosen": "A", "rejected": "B"},
    ],
)
def test_beside_messages_it_refuses_the_row(name: str, row: dict[str, Any]) -> None:
    beside = {name: [["a", "b"]] if name == "history" else "text"}
    with pytest.raises(RowRefused, match=f"the row has `{name}` beside the messages of"):
        said({**row, **beside})
    for nothing in (None, "", []):
        assert said({**row, name: nothing}) == said(row)
    assert said({**row, **beside}, columns={name: "-"}) == said(row)


def test_a_prompt_in_a_text_is_asked_with_what_stands_beside_it_and_keeps_it() -> None:
    row = {"prompt": "Q", "context": "below", "history": [["q0", "a0"]], "level": 3}
    content = said(row)
    assert isinstance(content, Prompt)
    asked_for = [(message["role"], message["content"]) for message in content.messages]
    assert asked_for == [("user", "q0"), ("assistant", "a0"), ("user", "Q\nbelow")]
    assert content.columns == {name: value for name, value in row.items() if name != "prompt"}
    alone = said({**row, "prompt": TURNS[:1]})
    assert (
        isinstance(alone, Prompt)
        and list(alone.messages) == TURNS[:1]
        and alone.columns["context"] == "below"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"prompt": "hi", "completion": "hello"},
        {"prompt": "hi", "chosen": "hello", "rejected": "no"},
        {"question": "hi", "answer": "hello"},
    ],
)
def test_a_row_with_an_answer_that_becomes_a_prompt_keeps_its_other_columns(row: dict[str, Any]) -> None:
    rest = {"solution": "42", "tests": [1, 2], "empty": None}
    pipeline = Pipeline(Plan((SetSection(path="x"),), None, "prompt"))
    (made,) = pipeline.prepared([Row(0, "x", 1, {**row, **rest})])
    assert isinstance(made.content, Prompt)
    assert {name: made.content.columns[name] for name in rest} == rest
    assert not any("not used" in line for line in pipeline.notes.lines())
    imitated = Pipeline(Plan((SetSection(path="x"),), None))
    list(imitated.prepared([Row(0, "x", 1, {**row, **rest})]))
    (told,) = [line for line in imitated.notes.lines() if "not used" in line]
    assert "`solution`, `tests` (1 row, first x:1)" in told


def test_an_answer_that_is_rejected_is_not_passed_over() -> None:
    with pytest.raises(RowRefused, match="the row has `rejected_response`, which changes what it means"):
        said({"query": "q", "response": "a", "rejected_response": "b"})


def test_messages_written_as_json_text_are_messages() -> None:
    """As a cell of CSV holds them; other text that begins with a bracket stays text."""
    question, answer = [json.dumps([turn]) for turn in TURNS]
    rows: list[dict[str, Any]] = [{"completion": answer}, {"completion": answer, "label": True}]
    rows += [{"chosen": answer, "rejected": "no"}]
    for row in rows:
        read = {name: "hello" if value == answer else value for name, value in row.items()}
        assert said({"prompt": question, **row}) == said({"prompt": "hi", **read})
    for text in ("[1, 2]", "[]", "[x] done", '[{"a": 1}]', '["role"]', "[" * 5000):
        assert asked({"prompt": text, "completion": "a"}) == [("user", text)]
