"""Files to rows: every kind, what is wrong with a line, and what is wrong with a file."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.sources import Row, list_files, read_rows
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
        write(tmp_path / "a.jsonl.gz", gzip.compress(lines(RECORDS).encode())),
        write(tmp_path / "LIST.JSON.GZ", gzip.compress(json.dumps(RECORDS).encode())),
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet", row_group_size=2)
    for file in [*files, tmp_path / "a.parquet"]:
        rows = read(file)
        assert records(rows) == RECORDS, file
        assert [row.number for row in rows] == [0, 1, 2]
        assert {row.file for row in rows} == {str(file)}


def test_rows_know_their_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '\n{"a": 1}\n\n{"a": 2}\n')
    assert [row.where for row in read(file)] == [f"{file}:2", f"{file}:4"]
    file = write(tmp_path / "a.json", '[\n  {"a": 1},\n\n  {"a":\n 2},\n {"a": 3}\n]\n')
    assert [row.line for row in read(file)] == [2, 4, 6]


def test_folders_are_read_in_order_and_numbers_go_on(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "b.jsonl", lines(RECORDS[:1]))
    write(tmp_path / "sub" / "c.json", json.dumps(RECORDS[1:2]))
    write(tmp_path / ".hidden.jsonl", "broken")
    write(tmp_path / "readme.txt", "no data")
    extra = write(tmp_path / "sub" / "d.jsonl", lines(RECORDS[2:]))
    rows = read(tmp_path, extra)
    assert records(rows) == [*RECORDS, RECORDS[2]]
    assert [row.number for row in rows] == [0, 1, 2, 3]
    assert [file.name for file in list_files([tmp_path])] == ["b.jsonl", "c.json", "d.jsonl"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"a": 1,}', r"the line is not valid JSON: .* at column \d"),
        ('{"a": ', "the line is not valid JSON: Expecting value at column 6"),
        ('{"a": 1} {"a": 2}', "the line is not valid JSON: Extra data at column 10"),
        ("[1]", "the row is a JSON list, not an object with columns"),
        ("null", "the row is a JSON NoneType, not an object"),
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


def test_item_that_is_no_object_is_a_fault(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.json", '[{"a": 1}, 5]'))
    assert rows[1].fault == "the row is a JSON int, not an object with columns"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", r"a\.jsonl is empty: it has no rows"),
        ("a.jsonl", b"\n  \n\r\n", r"a\.jsonl is empty"),
        ("a.json", b"  ", r"a\.json is empty"),
        ("a.json", b"[]", r"a\.json is empty"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl is not UTF-8 text: byte 0xff at offset 16"),
        ("a.jsonl", b'\xef\xbb\xbf{"\xe9"}\n', r"not UTF-8 text: byte 0xe9 at offset 5"),
        ("a.json", '[{"a": 1}]'.encode("utf-16"), r"a\.json is not UTF-8 text: byte 0xff at offset 0"),
        ("a.json", b'[{"a": 1}\n {"a": 2}]', r"a\.json is not valid JSON: Expecting ',' delimiter at line 2"),
        ("a.json", b'[{"a": 1}', r"a\.json is not valid JSON: Expecting ',' delimiter at line 1"),
        ("a.json", b'[{"a": 1}, ', "not valid JSON: Expecting value at line 1, column 12"),
        ("a.json", b'[{"a": 1}] x', "not valid JSON: Extra data at line 1, column 12"),
        (
            "a.json",
            b'{"a": 1}\n{"a": 2}',
            r"Extra data at line 2, column 1; one object a line is called \.jsonl",
        ),
        (
            "a.json",
            b'{"a": 1}',
            "holds one object; its rows must be the one list in it, but the lists are: none",
        ),
        ("a.json", b'{"a": [], "b": []}', "the lists are: `a`, `b`"),
        ("a.json", b'"text"', "holds a JSON str; it must hold a list of objects"),
        ("a.json", b"[" * 200_000, "its brackets are nested too deep"),
        ("a.parquet", b"PAR1 no", r"a\.parquet is not a whole parquet file"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz is not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 500)[:-10], r"a\.jsonl\.gz is not a whole gzip file"),
        ("a.csv", b"a,b", r"a\.csv is of an unknown kind; data files end with \.jsonl, \.json, \.parquet"),
    ],
)
def test_broken_file_stops_with_its_name(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(write(tmp_path / name, content))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", lines(RECORDS))
    with pytest.raises(DataError, match=r"trian\.jsonl does not exist; did you mean .*train\.jsonl\?"):
        read(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="does not exist, and neither does its folder"):
        read(tmp_path / "no" / "where" / "a.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no data files .* it holds nothing"):
        read(tmp_path / "empty")
    for remote in ("https://example.org/a.jsonl", "hf:owner/name", "owner/name"):
        with pytest.raises(DataError, match="hub ids and URLs are not supported yet; download it"):
            list(read_rows([remote]))


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
