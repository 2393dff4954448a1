"""A canonical row, read again, says the same: for every kind of content."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.config.data_section import SetSection
from luthier.data.canonical import canonical_line, record_of, same
from luthier.data.content import (
    Answers,
    Content,
    Labelled,
    Pieces,
    Prompt,
    Related,
    Steps,
    Text,
    TokenIds,
    kind_of,
)
from luthier.data.conversation import Conversation
from luthier.data.convert import convert_row, formats_of
from luthier.data.detect import detect
from luthier.data.sources import Row, read_rows
from luthier.errors import RowRefused

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"

TEXT = st.text(max_size=12) | st.text(alphabet='<>{}"\n\\ ab\u2028\u00e9\U0001f600', max_size=12)
NAME = st.sampled_from(["look", "find_it"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
ARGUMENTS = st.dictionaries(TEXT, JSON, max_size=2)
CALL = st.builds(
    lambda name, arguments, bare, number: (
        {"name": name, "arguments": arguments}
        if bare
        else {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
    ),
    NAME, ARGUMENTS, st.booleans(), st.integers(0, 9),
)  # fmt: skip
USER = st.builds(lambda text: {"role": "user", "content": text}, TEXT)
SYSTEM = st.builds(
    lambda role, text: {"role": role, "content": text}, st.sampled_from(["system", "developer"]), TEXT
)
TOOL = st.builds(
    lambda text, name: {"role": "tool", "content": text, **({"name": name} if name else {})},
    TEXT,
    st.none() | NAME,
)
ANSWER = st.builds(lambda text: {"role": "assistant", "content": text}, TEXT)
THOUGHT = st.builds(
    lambda text, why: {"role": "assistant", "content": text, "reasoning_content": why}, TEXT, TEXT
)
CALLING = st.builds(
    lambda text, calls: {"role": "assistant", "content": text, "tool_calls": calls},
    st.none() | TEXT,
    st.lists(CALL, min_size=1, max_size=2),
)
ASSISTANT = ANSWER | THOUGHT | CALLING
MESSAGE = USER | SYSTEM | TOOL | ASSISTANT
TOOLS = st.none() | st.lists(
    st.fixed_dictionaries({"name": NAME, "parameters": ARGUMENTS}), min_size=1, max_size=2
)
WEIGHT = st.sampled_from([1.0, 1.0, 0.0, 0.5, 2.0])
NUMBER = st.floats(-9, 9) | st.integers(-9, 9).map(float)
COLUMNS = st.dictionaries(st.sampled_from(["id", "source", "answer", "level"]), JSON, max_size=2)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages = draw(st.lists(MESSAGE, max_size=4))
    messages.insert(draw(st.integers(0, len(messages))), draw(ASSISTANT))
    weights = [draw(WEIGHT) for _ in messages]
    learned = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    weights[learned] = draw(st.sampled_from([1.0, 0.25]))
    return Conversation(messages, draw(TOOLS), draw(ARGUMENTS), tuple(weights))


@st.composite
def answers(draw: st.DrawFn) -> Answers:
    judged: Any = draw(st.sampled_from(["pair", "label", "ranking"]))
    count = {"pair": 2, "label": 1}.get(judged) or draw(st.integers(2, 4))
    context = (*draw(st.lists(SYSTEM, max_size=1)), *draw(st.lists(ASSISTANT, max_size=1)), draw(USER))
    given = tuple((*draw(st.lists(CALLING | TOOL, max_size=1)), draw(ANSWER)) for _ in range(count))
    given = tuple(answer if answer[0]["role"] == "assistant" else answer[1:] for answer in given)
    facts: dict[str, tuple[float, ...]] = {}
    if judged == "pair":
        given = (given[0], (*given[1][:-1], {"role": "assistant", "content": given[0][-1]["content"] + "!"}))
        if draw(st.booleans()):
            facts["score"] = (draw(NUMBER), draw(NUMBER))
        if draw(st.booleans()):
            facts["margin"] = (draw(NUMBER),) * 2
    elif judged == "label":
        facts["label"] = (draw(st.sampled_from([0.0, 1.0])),)
    else:
        name, sign = draw(st.sampled_from([("score", -1), ("rank", 1)]))
        facts[name] = tuple(sorted((draw(NUMBER) for _ in range(count)), key=lambda value: sign * value))
    return Answers(context, given, judged, facts, draw(TOOLS), draw(ARGUMENTS))


@st.composite
def token_ids(draw: st.DrawFn) -> TokenIds:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9))
    learned = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)).filter(any))
    return TokenIds(np.array(ids, np.int32), np.array(learned, np.float32))


@st.composite
def steps(draw: st.DrawFn) -> Steps:
    texts = draw(st.lists(TEXT, min_size=1, max_size=3))
    context = (*draw(st.lists(SYSTEM, max_size=1)), draw(USER))
    return Steps(context, tuple(texts), tuple(draw(NUMBER) for _ in texts))


PIECES = st.lists(st.tuples(TEXT, st.booleans()), min_size=1, max_size=4).filter(
    lambda own: any(text and learned for text, learned in own)
)
CONTENTS: dict[str, st.SearchStrategy[Content]] = {
    "conversation": conversations(),
    "text": st.builds(Text, TEXT.filter(bool), COLUMNS),
    "tokens": token_ids(),
    "pieces": st.builds(lambda own: Pieces(tuple(own)), PIECES),
    "answers": answers(),
    "steps": steps(),
    "labelled": st.builds(Labelled, TEXT.filter(bool), TEXT.map(str.strip).filter(bool) | NUMBER),
    "related": st.lists(st.tuples(TEXT.filter(str.strip), st.floats(0, 1)), min_size=1, max_size=3).flatmap(
        lambda own: st.builds(
            Related,
            TEXT.filter(str.strip),
            st.just(tuple(text for text, _ in own)),
            st.just(tuple(label for _, label in own)),
        )
    ),
    "prompt": st.builds(
        lambda first, last, columns: Prompt((*first, last), columns), st.lists(SYSTEM, max_size=1), USER, COLUMNS
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTENTS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_canonical_row_says_the_same(kind: str, data: st.DataObject) -> None:
    content = data.draw(CONTENTS[kind])
    assert kind_of(content) == kind
    line = canonical_line(content)
    assert "\n" not in line and line.encode()
    record = json.loads(line)
    format = detect(record)
    assert format is not None
    again = format.convert(record)
    assert same(again, content)
    assert canonical_line(again) == line, "canonical is what it is converted to"


def test_every_kind_of_content_has_a_strategy() -> None:
    from typing import get_args

    from luthier.data.content import Kind

    assert set(CONTENTS) == set(get_args(Kind))


@given(st.data())
def test_other_contents_are_not_the_same(data: st.DataObject) -> None:
    one, other = (
        data.draw(st.sampled_from(list(CONTENTS.values())).flatmap(lambda kind: kind)) for _ in "ab"
    )
    assert same(one, one) and same(other, other)
    if same(one, other):
        assert canonical_line(one) == canonical_line(other)


def test_answers_that_begin_with_a_question_are_whole_conversations() -> None:
    user, more = {"role": "user", "content": "q"}, {"role": "user", "content": "go on"}
    sides = [({**more, "content": text}, {"role": "assistant", "content": text}) for text in "ab"]
    content = Answers((user, {"role": "assistant", "content": "x"}), tuple(sides), "pair")
    assert set(record_of(content)) == {"chosen", "rejected"}
    record = json.loads(canonical_line(content))
    format = detect(record)
    assert format is not None and same(format.convert(record), content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (Text("a", {"prompt": "b", "completion": "c"}), "would say something else when it is read again"),
        (Text("a", {"raw": b"b"}), "`raw` holds a bytes, which JSON cannot hold"),
    ],
)
def test_what_cannot_come_back_is_refused(content: Content, reason: str) -> None:
    with pytest.raises(RowRefused, match=reason):
        canonical_line(content)


def test_half_surrogates_survive() -> None:
    line = canonical_line(Text("\ud800 é"))
    assert line.isascii() and json.loads(line) == {"text": "\ud800 é"}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not there")
@pytest.mark.parametrize("name", ["alpaca_en_demo.json", "dpo_en_demo.json", "kto_en_demo.json", "c4_demo.jsonl",
                                  "reason_tool_use_demo_50.jsonl", "glaive_toolcall_en_demo.json"])  # fmt: skip
def test_real_rows_come_back(name: str) -> None:
    section = SetSection(path=str(SHARED / name))
    formats = formats_of(section)
    checked = 0
    for row in list(read_rows([section.path]))[:60]:
        try:
            content = convert_row(row, section, formats)
        except RowRefused:
            continue
        record: Any = json.loads(canonical_line(content))
        again = convert_row(
            Row(0, "a.jsonl", 1, record), SetSection(path="a.jsonl"), formats_of(SetSection(path="a.jsonl"))
        )
        assert same(again, content)
        checked += 1
    assert checked > 0
