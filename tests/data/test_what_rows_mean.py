"""Columns, tools and nulls that change what a row means are read or refused, never passed over."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from luthier.config.data_section import SetSection
from luthier.data.chat import ChatTemplate
from luthier.data.pipeline import Pipeline, Plan, PreparedRow
from luthier.data.prepare import prepare
from luthier.data.sources import open_source, read_rows
from luthier.errors import DataError

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judged(*files: Path, **options: Any) -> list[PreparedRow]:
    """What becomes of the rows of files, as far as that can be told without a model."""
    sets = tuple(SetSection(path=str(file), **options) for file in files)
    return list(Pipeline(Plan(sets, None)).prepared(row for row, _ in open_source(sets).rows()))


@pytest.mark.parametrize("column", ["images", "videos", "audio"])
def test_a_column_that_turns_the_meaning_round_refuses_the_row(column: str, tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.jsonl", [{"messages": TURNS, column: ["x"]}, {"messages": TURNS, column: None}]
    )
    refused, kept = judged(file)
    assert refused.reason == (
        f"the row has `{column}` (1), and images, video and sound are not supported yet. Leave such rows out, or map "
        f"`{column}` to `-` in `columns` to train on the text alone"
    )
    assert kept.status == "kept" and {row.status for row in judged(file, columns={column: "-"})} == {"kept"}


def test_a_label_under_another_format_refuses_the_row(tmp_path: Path) -> None:
    """A review and its mood: the text alone would be learned as if the mood did not matter."""
    (row,) = judged(write(tmp_path / "rows.jsonl", [{"text": "good", "label": 1}]))
    assert row.reason and row.reason.startswith(
        "the row has `label`, which changes what it means and is not read by this method"
    )


def test_answers_labelled_as_bad_are_left_out_on_purpose(tmp_path: Path) -> None:
    rows = [{"messages": TURNS, "label": label} for label in (False, True, None)]
    bad, good, plain = judged(write(tmp_path / "kto.jsonl", rows))
    assert (bad.status, bad.set_aside) == ("dropped", True)
    assert good.status == plain.status == "kept"


def test_columns_of_two_formats_are_not_chosen_between(tmp_path: Path) -> None:
    file = write(tmp_path / "both.jsonl", [{"messages": TURNS, "prompt": "a", "completion": "b"}])
    wanted = r"both\.jsonl: rows have the columns of several formats: messages .*prompt_comp"
    with pytest.raises(DataError, match=wanted):
        judged(file)


def test_a_bad_row_where_a_file_begins_is_only_a_bad_row(tmp_path: Path) -> None:
    good = {"messages": TURNS}
    for num_before in (254, 255, 256):
        first = write(tmp_path / "a.jsonl", [good] * num_before)
        second = write(tmp_path / "b.jsonl", [{"words": "?"}, *[good] * 300])
        rows = judged(first, second)
        assert [row.status for row in rows].count("dropped") == 1 and len(rows) == num_before + 301


def test_parquet_gives_what_jsonl_gives(tmp_path: Path) -> None:
    """A table has one set of fields for all rows; the nulls it fills in are no part of a row."""

    def row(tool: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": tool["name"], "arguments": arguments}}
        answer = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {"messages": [TURNS[0], answer], "tools": [{"type": "function", "function": tool}]}

    rows = [
        row({"name": "weather", "parameters": {"city": {"type": "string"}}}, {"city": "Oslo"}),
        row({"name": "sum", "parameters": {"x": {"type": "number"}}}, {"x": 3}),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    lines = read_rows([write(tmp_path / "rows.jsonl", rows)])

    for one, two in zip(lines, read_rows([tmp_path / "rows.parquet"]), strict=True):
        assert one.record == two.record


def test_tools_that_the_template_never_shows_are_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tool = {"type": "function", "function": {"name": "getw", "parameters": {}}}
    asked = [{"role": "user", "content": "please getw now"}, TURNS[1]]
    file = write(tmp_path / "rows.jsonl", [{"messages": asked, "tools": [tool]}])
    with pytest.raises(DataError, match="the template does not show the tool 'getw' to the model"):
        prepare([file], ChatTemplate(tokenizer), max_length=100)


def test_reasoning_that_the_template_throws_away(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """In the last answer it refuses the row; in earlier ones it is counted and told."""
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('</think>')[-1] if not loop.last or throw is defined else m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    early, late = ({"role": "assistant", "content": f"<think>{word}</think>so"} for word in ("first", "then"))
    file = write(tmp_path / "rows.jsonl", [{"messages": [TURNS[0], early, TURNS[0], late]}])
    rows = prepare([file], ChatTemplate(tokenizer, source), max_length=100)
    assert "the chat template leaves out the reasoning of 1 earlier answers" in rows.ledger.summary()
    with pytest.raises(DataError, match="the template leaves out the reasoning of"):
        prepare([file], ChatTemplate(tokenizer, source, {"throw": True}), max_length=100)
