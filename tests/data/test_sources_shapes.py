"""JSON and CSV as other programs write them: wrapped lists, single rows, odd ends of lines, blanks and delimiters."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.config.data_section import SetSection
from luthier.data.sources import Row, open_source
from luthier.errors import DataError

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
ROWS = [{"text": "a"}, {"text": "b"}]


def read(file: Path) -> list[Row]:
    """The rows of a file; reading goes on from every position as if it had never stopped."""
    source = open_source([SetSection(path=str(file))])
    found = list(source.rows())
    for number, (_, position) in enumerate(found):
        rest = [row for row, _ in source.rows(0, json.loads(json.dumps(position)))]
        assert rest == [row for row, _ in found[number + 1 :]]
    return [row for row, _ in found]


def records(folder: Path, name: str, content: str) -> list[Any]:
    file = folder / name
    file.write_bytes(content.encode())
    return [row.record for row in read(file)]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "document",
    [
        {"data": ROWS},
        {"version": "1", "tags": ["x", "y"], "counts": [1, 2], "data": ROWS},
        {"licenses": [], "info": {"names": ["x"]}, "rows": ROWS, "columns": ["text"]},
        {"conversations": [{"conversations": TURNS}, {"conversations": TURNS}]},
        {"prompt": [{"prompt": "a"}, {"prompt": "b"}]},
    ],
)
def test_the_one_list_of_objects_in_an_object_holds_the_rows(
    tmp_path: Path, document: dict[str, Any], indent: int | None
) -> None:
    lists = [v for v in document.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    assert records(tmp_path, "a.json", json.dumps(document, indent=indent)) == lists[0]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"id": 3, "tools": [{"type": "function", "function": {"name": "f"}}], "messages": TURNS},
        {"conversations": [{"from": "human", "value": "a"}], "chosen": [TURNS[1]], "rejected": [TURNS[1]]},
        {"prompt": "a", "completion": "b"},
    ],
)
def test_an_object_that_is_a_row_is_a_row(tmp_path: Path, row: dict[str, Any], indent: int | None) -> None:
    assert records(tmp_path, "a.json", json.dumps(row, indent=indent)) == [row]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"data": {"rows": ROWS}}, r"but the list is `data\.rows`; write that list alone to the file"),
        (
            {"train": ROWS, "test": ROWS},
            "the lists in it are `train`, `test`; give each as a file of its own",
        ),
        ({"data": [None, *ROWS], "more": ROWS}, "the lists in it are `data`, `more`"),
        (
            {"prompt": ["a"], "completion": ["b"]},
            "it has columns instead: `prompt`, `completion`; write one obj",
        ),
        (
            {"one": {"text": "a"}, "two": {"text": "b"}},
            "it has objects by name instead: `one`, `two`; write them",
        ),
        ({"data": []}, "but it has `data`"),
        ({}, "but it has nothing"),
    ],
)
def test_another_object_is_refused_with_the_keys_it_has(
    tmp_path: Path, document: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        records(tmp_path, "a.json", json.dumps(document))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "a"}\r{"text": "b"}\r'),
        ("a.json", '[\r{"text": "a"},\r{"text": "b"}\r]'),
        ("lines.json", '{"text": "a"}\r{"text": "b"}\r'),
        ("a.txt", "a\rb"),
        ("a.csv", "text\ra\rb\r"),
        ("b.csv", 'text\r"a"\r"b"\r'),
    ],
)
def test_lines_may_end_with_a_carriage_return_alone(
    tmp_path: Path, name: str, content: str, packed: bool
) -> None:
    file = tmp_path / (name + ".gz" * packed)
    file.write_bytes(gzip.compress(content.encode(), mtime=0) if packed else content.encode())
    rows = read(file)
    assert [row.record for row in rows] == ROWS
    assert rows[1].line == rows[0].line + 1


@pytest.mark.parametrize("lines_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    "lines",
    [
        ["prompt,completion", '"1, 2",b', 'c,"d ""e"""'],
        ["prompt, completion", ' "1, 2", "b" ', 'c, "d ""e"""'],
        ['"prompt" , "completion"', '"1, 2" ,b', 'c , "d ""e"""'],
        ["sep=,", "prompt,completion", '"1, 2",b', 'c,"d ""e"""'],
        ["prompt,completion,", '"1, 2",b,', 'c,"d ""e""",'],
        ["prompt,completion,,", '"1, 2",b', 'c,"d ""e""",'],
        ["prompt;completion", "1, 2;b", 'c;"d ""e"""'],
        ["sep=;", "prompt;completion", '"1, 2";b', 'c;"d ""e"""'],
        ['"sep=\t"', "prompt\tcompletion", "1, 2\tb", 'c\t"d ""e"""'],
        ["prompt\tcompletion\t", "1, 2\tb\t", 'c\t"d ""e"""\t'],
        ["SEP=|", "prompt|completion", "1, 2|b", 'c|"d ""e"""'],
    ],
)
def test_tables_as_spreadsheets_write_them(
    tmp_path: Path, lines: list[str], mark: str, lines_end: str
) -> None:
    found = records(tmp_path, "a.csv", mark + "".join(line + lines_end for line in lines))
    stripped = [{name: cell.strip() for name, cell in record.items()} for record in found]
    assert stripped == [{"prompt": "1, 2", "completion": "b"}, {"prompt": "c", "completion": 'd "e"'}]


def test_text_in_a_column_without_a_name_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('a,b,\n1,2,x\n3,4,\n5, 6 "x" y,\n7, "8\n9, "x" y\n')
    rows = read(file)
    assert [row.record for row in rows] == [
        None,
        {"a": "3", "b": "4"},
        {"a": "5", "b": ' 6 "x" y'},
        {"a": "7", "b": ' "8'},
        {"a": "9", "b": ' "x" y'},
    ]
    assert rows[0].fault == "the line has 3 cells, but the header names 2 columns"
