"""Files to rows: every kind, what is wrong with a line, and what is wrong with a file."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.sources import Row, read_rows
from luthier.errors import DataError

RECORDS = [{"a": 1, "text": "naïve 😀"}, {"a": 2, "text": "two\nlines"}, {"a": 3, "text": "\u2028"}]


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(records: list[Any], end: str = "\n") -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + end for record in records)


def read(*paths: Path) -> list[Row]:
    return list(read_rows([str(path) for path in paths]))


def records(rows: list[Row]) -> list[Any]:
    return [row.record for row in rows]


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.jsonl", lines(RECORDS)),
        write(tmp_path / "windows.jsonl", b"\xef\xbb\xbf" + lines(RECORDS, "\r\n").encode()),
        write(tmp_path / "blank.jsonl", "\n\n" + lines(RECORDS, "\n  \n")),
        write(tmp_path / "unended.jsonl", lines(RECORDS).rstrip("\n")),
        write(tmp_path / "list.json", json.dumps(RECORDS)),
        write(tmp_path / "marked.json", b"\xef\xbb\xbf" + json.dumps(RECORDS, indent=1).encode()),
        write(tmp_path / "inside.json", json.dumps({"version": 1, "data": RECORDS})),
        write(tmp_path / "a.jsonl.gz", gzip.compress(lines(RECORDS).encode(), mtime=0)),
        write(tmp_path / "LIST.JSON.GZ", gzip.compress(json.dumps(RECORDS).encode(), mtime=0)),
        write(tmp_path / "lines.json", lines(RECORDS)),
        write(tmp_path / "a.ndjson.zst", pyarrow.compress(lines(RECORDS).encode(), "zstd", asbytes=True)),
    ]
    table = pyarrow.Table.from_pylist(RECORDS)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    pyarrow.feather.write_feather(table, str(tmp_path / "file.arrow"), chunksize=2)
    with pyarrow.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    for file in [*files, tmp_path / "a.parquet", tmp_path / "file.arrow", tmp_path / "stream.arrow"]:
        rows = read(file)
        assert records(rows) == RECORDS, file
        assert [row.number for row in rows] == [0, 1, 2]
        assert {row.file for row in rows} == {str(file)}


def test_rows_know_their_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '\n{"a": 1}\n\n{"a": 2}\n')
    assert [row.where for row in read(file)] == [f"{file}:2", f"{file}:4"]
    file = write(tmp_path / "a.json", '[\n  {"a": 1},\n\n  {"a":\n 2},\n {"a": 3}\n]\n')
    assert [row.line for row in read(file)] == [2, 4, 6]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"a": 1,}', r"the line is not valid JSON: .* at column \d"),
        ('{"a": ', "the line is not valid JSON: Expecting value at column 6"),
        ('{"a": 1} {"a": 2}', "the line is not valid JSON: Extra data at column 10"),
        ("[1]", "the row is a list, not an object with columns"),
        ("null", "the row is null, not an object"),
        ('{"a": ' + "9" * 5000 + "}", "the line is not JSON that can be read: Exceeds the limit"),
        ("[" * 200_000, "the line is not JSON that can be read: maximum recursion depth"),
    ],
)
def test_broken_line_is_a_fault_and_the_rows_around_it_are_read(
    tmp_path: Path, line: str, fault: str
) -> None:
    import re

    rows = read(write(tmp_path / "a.jsonl", '{"a": 1}\n' + line + '\n{"a": 3}\n'))
    assert records(rows) == [{"a": 1}, None, {"a": 3}]
    assert rows[1].line == 2 and re.match(fault, rows[1].fault or "")


def test_csv_rows(tmp_path: Path) -> None:
    text = '\ufeff,question;x,answer\r\n0,"a ""b"", c\nd",5" pipe\r\n\r\n1,,"e"\n2,g\n'
    rows = read(write(tmp_path / "a.csv", text))
    assert [row.record for row in rows] == [
        {"Unnamed: 0": "0", "question;x": 'a "b", c\nd', "answer": '5" pipe'},
        {"Unnamed: 0": "1", "question;x": "", "answer": "e"},
        None,
    ]
    assert rows[2].fault == "the line has 2 cells, but the header names 3 columns"
    assert [row.line for row in rows] == [2, 5, 6]
    long = "x" * 200_000
    for name, end in (("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t"), ("a.csv", "|")):
        rows = read(write(tmp_path / name, f"a{end}b\n1{end}2, 3\n4{end}{long}\n"))
        assert records(rows) == [{"a": "1", "b": "2, 3"}, {"a": "4", "b": long}]


def test_text_behind_a_closing_quote_is_a_fault_and_between_tabs_the_quotes_are_text(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.csv", 'a,b\n"he said \\"hi\\"",b\n1,"2"\n'))
    assert records(rows) == [None, {"a": "1", "b": "2"}]
    assert rows[0].fault == "text after a closing quote; write double quotes inside cells twice"
    rows = read(write(tmp_path / "a.tsv", 'a\tb\n"Hi" he said\tb\n"Hi\tho"\t"b"\r\n'))
    assert records(rows) == [{"a": '"Hi" he said', "b": "b"}, {"a": "Hi\tho", "b": "b"}]
    with pytest.raises(DataError, match=r"a\.csv:1 has text after a closing quote"):
        read(write(tmp_path / "a.csv", '"a"x,b\n1,2\n'))


cells = st.text(st.sampled_from('ab ,;"\n\r\t'), max_size=6)


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1)))
def test_csv_reads_what_the_standard_library_writes(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[str]]
) -> None:
    header = [f"c{number}" for number in range(len(table[0]))]
    file = tmp_path_factory.mktemp("csv") / "a.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([header, *table])
    assert [list((row.record or {}).values()) for row in read(file)] == table


def test_text_lines(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.txt", "one\r\n\n  two \n \t\nthree"))
    assert [(row.line, row.record) for row in rows] == [
        (1, {"text": "one"}),
        (3, {"text": "  two "}),
        (5, {"text": "three"}),
    ]


def test_json_larger_than_a_portion(tmp_path: Path) -> None:
    """Characters, numbers, escapes and items that lie across the edges of what is read at once."""
    items = [{"n": number, "text": "€\\" * (number % 7000)} for number in range(600)]
    for content in (json.dumps(items, ensure_ascii=False), json.dumps({"a": 1, "rows": items, "z": {}})):
        assert records(read(write(tmp_path / "a.json", content))) == items
    with pytest.raises(DataError, match=r"Expecting ',' delimiter at line 3, column 8"):
        read(write(tmp_path / "a.json", json.dumps(items)[:-1] + ',\n\n{"a":1 "b": 2}]'))


def test_item_that_is_no_object_is_a_fault(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.json", '[{"a": 1}, 5]'))
    assert rows[1].fault == "the row is a number, not an object with columns"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", r"a\.jsonl is empty: it has no rows"),
        ("a.jsonl", b"\n  \n\r\n", r"a\.jsonl is empty"),
        ("a.json", b"  ", r"a\.json is empty"),
        ("a.json", b"[]", r"a\.json is empty"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl is not UTF-8 text: byte 0xff at offset 16"),
        ("a.jsonl", b'\xef\xbb\xbf{"\xe9"}\n', r"not UTF-8 text: byte 0xe9 at offset 5"),
        ("a.json", '[{"a": 1}]'.encode("utf-16"), r"a\.json is UTF-16 text; convert it to UTF-8"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16-be"), r"a\.jsonl is UTF-16 text"),
        ("a.txt", "text".encode("utf-32-le"), r"a\.txt is UTF-32 text"),
        ("a.jsonl", b'[\n{"a": 1},\n{"a": 2}]', r"a\.jsonl:1 begins JSON with a list.*end with \.json"),
        ("a.jsonl", b'[{"a": 1}, {"a": 2}]', r"a\.jsonl:1 holds a whole list of 2 rows"),
        ("a.jsonl", b'{\n  "a": 1\n}\n{\n "a": 2\n}', r"a\.jsonl:1 begins JSON with objects over several"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), r"a\.jsonl is gzip data; let its name end with \.gz"),
        ("a.txt", b'\n{"text": "one"}\n{}', r"a\.txt:2 holds JSON lines; let its name end with \.jsonl"),
        ("a.jsonl", b"PAR1 and so on", r"a\.jsonl is a parquet file"),
        ("a.csv", b"PK\x03\x04 a sheet", r"a\.csv is a zip archive or an office document"),
        (
            "a.txt",
            b"version https://git-lfs.github.com/spec/v1\n",
            "Git LFS, not the file; run `git lfs pull`",
        ),
        ("a.json", b"<!DOCTYPE html>", r"a\.json is a web page"),
        ("a.json", b'{"a": [1], "b": tru', "not valid JSON: Expecting value at line 1, column 17"),
        ("a.json", b'{"a": [{}]} {', "Extra data at line 1, column 13"),
        ("a.json", b'[{"a": ' + b"9" * 5000 + b"}]", r"a\.json:1 is not JSON that can be read: Exceeds"),
        ("a.json", b'[{"a": 1}\n {"a": 2}]', r"a\.json is not valid JSON: Expecting ',' delimiter at line 2"),
        ("a.json", b'[{"a": 1}', r"a\.json is not valid JSON: Expecting ',' delimiter at line 1"),
        ("a.json", b'[{"a": 1}, ', "not valid JSON: Expecting value at line 1, column 12"),
        ("a.json", b'[{"a": 1}] x', "not valid JSON: Extra data at line 1, column 12"),
        (
            "a.json",
            b'{"a":\n 1}\n{"a": 2}',
            r"Extra data at line 3, column 1; one object a line is called \.jsonl",
        ),
        (
            "a.json",
            b'{"a": 1}',
            r"holds one object; its rows must be the one list of objects in it, but it has `a`\. Rows are a list",
        ),
        ("a.json", b'{"a": [], "b": []}', "but it has `a`, `b`"),
        ("a.json", b'"text"', "holds text; it must hold a list of objects"),
        ("a.json", b"[" * 200_000, "its brackets are nested too deep"),
        ("a.parquet", b"PAR1 no", r"a\.parquet is not a whole parquet file"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz is not a whole gzip file"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 500, mtime=0)[:-10],
            r"a\.jsonl\.gz is not a whole gzip file",
        ),
        ("a.arrow", b"ARROW1 no", r"a\.arrow is not a whole Arrow file"),
        ("a.arrow", b"", r"a\.arrow is not a whole Arrow file"),
        ("a.txt.zst", b"no zstd", r"a\.txt\.zst is not a whole zstd file"),
        ("a.csv", b"a,b", r"a\.csv is empty: it has no rows"),
        ("a.csv", b"1,2\n3,4", r"a\.csv:1 should name the columns, but `1` is a number"),
        ("a.csv", b"a,b,a\n", "the column `a` stands there twice"),
        ("a.csv", b"a,,b\n", "column 2 has no name"),
        ("a.csv", b'a,b\n1,"x\ny\n', r'a\.csv:2 opens a quote \("\) that is never closed'),
        ("a.csv", b"a" * 300 + b",b\n", "a cell has 300 characters, which is no column's name"),
        ("a.xlsx", b"PK", r"a\.xlsx is of an unknown kind; data files end with \.jsonl, .*\.parquet"),
        ("a.jsonl.bz2", b"BZ", r"packed in a way that is not read; unpack it"),
        ("a.parquet.gz", b"", r"tables pack their columns themselves; unpack the file"),
    ],
)
def test_broken_file_stops_with_its_name(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(write(tmp_path / name, content))


def test_parquet_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS * 1000), file, compression="none")
    content = bytearray(file.read_bytes())
    content[8:400] = b"\xff" * 392  # the footer is whole, the pages are not
    file.write_bytes(content)
    with pytest.raises(DataError, match="not a whole parquet file"):
        read(file)


@given(st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")), max_size=20))
def test_any_bytes_are_rows_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    file = write(tmp_path_factory.mktemp("fuzz") / "a.jsonl", b"\n".join(parts))
    try:
        rows = read(file)
    except DataError as fault:
        assert str(file) in str(fault)
        return
    assert len(rows) == sum(bool(part.removeprefix(b"\xef\xbb\xbf").decode().strip()) for part in parts)
    assert all((row.record is None) != (row.fault is None) for row in rows)
