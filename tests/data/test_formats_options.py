"""What a data set may say about its rows, and what is told about them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.config.data_section import SetSection
from luthier.data.content import kind_of
from luthier.data.convert import Formats, convert_row, formats_of
from luthier.data.detect import MEANINGFUL, MEDIA, known_formats
from luthier.data.notes import Notes
from luthier.data.sources import Row
from luthier.data.turns import Tags
from luthier.errors import DataError, RowRefused


def said(record: dict[str, Any], notes: Notes | None = None, **options: Any) -> Any:
    section = SetSection(path="x", **options)
    return convert_row(Row(0, "x.jsonl", 1, record), section, formats_of(section), notes)


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_a_column_can_be_left_alone() -> None:
    record = {
        "messages": [turn("user", "<image>q"), turn("assistant", "a")],
        "label": "sport",
        "images": ["x.png"],
    }
    notes = Notes()
    content = said(record, notes, columns={"label": "-", "images": "-"})
    assert content == said({"messages": record["messages"]})
    assert notes.lines() == [
        "`<image>` is written and there is no `images`; it is learned as any other text (1 row, first x.jsonl:1)"
    ]


def test_a_format_that_is_named_is_taken() -> None:
    record = {"messages": [turn("user", "q"), turn("assistant", "a")], "prompt": "p", "completion": "c"}
    assert said(record, format="messages").messages[0]["content"] == "q"
    assert said(record, format="prompt_completion").messages[0]["content"] == "p"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"format": "shargpt"}, "the `format` of x is `shargpt`, which is none; did you mean `sharegpt`"),
        ({"format": "q"}, "it must be one of alpaca, labelled, messages, "),
        (
            {"columns": {"mesages": "x"}},
            "`columns` of x has `mesages`, which is no column of any format; did you mean",
        ),
        (
            {"format": "text", "columns": {"instruction": "x"}},
            "which is no column of the format text; there are",
        ),
        ({"tags": {"asistant": "x"}}, "`tags` has the unknown name `asistant`; did you mean `assistant`"),
        ({"tags": {"q": "x"}}, "it must be one of role, content"),
    ],
)
def test_options_that_name_what_there_is_not(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        formats_of(SetSection(path="x", **options))


def test_the_first_rows_of_a_file_show_whether_it_has_a_format() -> None:
    plain = Formats(SetSection(path="x"))
    plain.check([{"a": 1}, {"text": "t"}], "f")
    with pytest.raises(
        DataError, match=r"(?s)^f: no known format .* were found: `a`, `b`\..*\n  messages: messages"
    ):
        plain.check([{"a": 1}, {"b": 2}], "f")
    fixed = Formats(SetSection(path="x", format="alpaca", columns={"instruction": "ask"}))
    fixed.check([{"ask": "q", "output": "a"}], "f")
    wanted = (
        "f: `format` is alpaca, which needs the columns `ask`, `output` or `ask`, `response`; .* have `text`"
    )
    with pytest.raises(DataError, match=wanted):
        fixed.check([{"text": "q"}], "f")


def test_rows_of_a_mixed_file_each_have_their_own_format_and_it_is_said_once() -> None:
    section, notes = SetSection(path="x"), Notes()
    formats = formats_of(section)
    records: list[dict[str, Any]] = [
        {"text": "t"},
        {"prompt": "p", "completion": "c", "id": 3},
        {"text": "u", "url": "v"},
        {"prompt": "p", "completion": "c", "id": 4},
        {"text": "w"},
    ]
    kinds = [kind_of(formats.convert(Row(i, "f", i + 1, record), notes)) for i, record in enumerate(records)]
    assert kinds == ["text", "conversation", "text", "conversation", "text"]
    assert notes.lines() == [
        "f holds rows of several formats: text (3), prompt_completion (2)",
        "columns that are not used: `id` (2 rows, first f:2)",
        "columns that are kept but not learned: `url` (1 row, first f:3)",
    ]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", "z"])), max_size=12),
    st.integers(0, 12),
)
def test_notes_of_parts_together_are_the_notes_of_the_whole(seen: list[tuple[str, str]], cut: int) -> None:
    def noted(part: list[tuple[str, str]], start: int) -> Notes:
        notes = Notes()
        for number, (file, what) in enumerate(part, start=start):
            notes.count_format(file, what)
            notes.add(what, f"{file}:{number}")
        return notes

    whole = noted(seen, 0)
    parts = noted(seen[:cut], 0)
    parts.merge(Notes.from_json(json.loads(json.dumps(noted(seen[cut:], min(cut, len(seen))).to_json()))))
    assert (parts.lines(), parts.to_json()) == (whole.lines(), whole.to_json())


def test_columns_that_change_the_meaning_are_columns_of_some_format_or_refused() -> None:
    for format in known_formats():
        kept = MEANINGFUL - MEDIA if format.name == "prompt" else set()  # for its reward
        assert set(format.strangers) == MEANINGFUL - format.own - kept
        for column in format.strangers:
            filled = {**dict.fromkeys(format.columns, "x"), column: ["x.png"]}
            with pytest.raises(RowRefused, match=f"the row has `{column}`.*map `{column}` to `-` in"):
                format.convert(filled, Tags())
