"""What does not grow with the data: memory while it is read, and the work to open it near its end."""

import gzip
import io
import json
import pickle
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from luthier.config.data_section import SetSection
from luthier.data.sources import open_source, read_rows
from luthier.data.sources.files import LocalFile
from luthier.data.sources.one_set import Cursor, RowSet

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
KINDS = ("jsonl", "jsonl.gz", "jsonl.zst", "json", "csv", "txt", "parquet", "arrow")


def write_rows(folder: Path, kind: str, num_rows: int) -> Path:
    """A file with about 1 kB a row."""
    file = folder / f"{num_rows}.{kind}"
    values = [f"{number} " + "x" * 1000 for number in range(num_rows)]
    table = pyarrow.table({"text": values})
    if kind == "parquet":
        pyarrow.parquet.write_table(table, file, row_group_size=100, compression="none", use_dictionary=False)
    elif kind == "arrow":
        with pyarrow.ipc.new_file(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=100)
    elif kind == "csv":
        file.write_text("text\n" + "".join(f'"{value}"\n' for value in values))
    elif kind == "txt":
        file.write_text("".join(f"{value}\n" for value in values))
    elif kind == "json":
        file.write_text(json.dumps([{"text": value} for value in values]))
    else:
        content = "".join(json.dumps({"text": value}) + "\n" for value in values).encode()
        content = gzip.compress(content) if kind.endswith("gz") else content
        file.write_bytes(pyarrow.compress(content, "zstd", asbytes=True) if kind.endswith("zst") else content)
    return file


def peak_of(file: Path) -> int:
    """Most bytes of Python's objects while all rows are read, each let go before the next."""
    tracemalloc.start()
    try:
        for _ in open_source([SetSection(path=str(file), rows=10**6)]).rows():
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_data(tmp_path: Path, kind: str) -> None:
    small, large = (write_rows(tmp_path, kind, num_rows) for num_rows in (2500, 7500))
    peak_of(small)  # what is imported and kept once does not count
    assert peak_of(large) <= 1.2 * peak_of(small) + 500_000


@dataclass(frozen=True)
class CountingFile(LocalFile):
    """A file that counts the bytes that are taken from it."""

    taken: list[int] = field(default_factory=list, compare=False)

    def local(self) -> Path | None:
        return None

    def open(self) -> io.BufferedReader:  # type: ignore[override]
        counter = self.taken

        class Raw(io.FileIO):
            def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
                number = super().readinto(buffer) or 0
                counter.append(number)
                return number

        return io.BufferedReader(Raw(self.name), 1 << 14)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.endswith(("gz", "zst"))])
def test_opening_near_the_end_does_not_read_what_lies_before(tmp_path: Path, kind: str) -> None:
    path = write_rows(tmp_path, kind, 4000)
    name = {"jsonl": "lines", "txt": "text"}.get(kind, kind)
    cursor = Cursor()
    whole = list(RowSet([LocalFile(str(path), name)], "here").read(0, cursor))
    file = CountingFile(str(path), name)
    rest = list(RowSet([file], "here").read(0, whole[3899][4]))
    assert rest == whole[3900:]
    assert sum(file.taken) < 0.15 * path.stat().st_size


def test_a_source_can_be_sent_to_another_process(tmp_path: Path) -> None:
    write_rows(tmp_path, "jsonl", 3)
    write_rows(tmp_path, "parquet", 3)
    source = open_source([SetSection(path=str(tmp_path)), SetSection(path="-", rows=5)])
    copy = pickle.loads(pickle.dumps(source))
    assert copy.files == source.files
    local = open_source([SetSection(path=str(tmp_path), rows=4)], mix="first_exhausted", seed=2)
    assert list(pickle.loads(pickle.dumps(local)).rows()) == list(local.rows())


def test_standard_input_is_a_stream_of_json_lines() -> None:
    program = (
        "from luthier.data.sources import read_rows\n"
        "print([(row.file, row.line, row.record, row.fault) for row in read_rows(['-'])])"
    )
    text = '{"a": 1}\n\nbroken\n{"a": 2}'
    done = subprocess.run(
        [sys.executable, "-c", program], input=text, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("('-', ") == 3 and "('-', 4, {'a': 2}, None)" in done.stdout
    assert "('-', 3, None, 'the line is not valid JSON" in done.stdout


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
@pytest.mark.parametrize(
    ("name", "num_rows"),
    [
        ("alpaca_en_demo.json", 999),
        ("c4_demo.jsonl", 300),
        ("dpo_en_demo.json", 300),
        ("glaive_toolcall_en_demo.json", 300),
        ("gsm8k_test.jsonl", 1319),
        ("gsm8k_train.jsonl", 7473),
        ("identity.json", 91),
        ("kto_en_demo.json", 300),
        ("mllm_demo.json", 6),
        ("reason_tool_use_demo_50.jsonl", 50),
        ("wiki_demo.txt", 30),
    ],
)
def test_real_files_have_all_their_rows(name: str, num_rows: int) -> None:
    rows = list(read_rows([SHARED / name]))
    assert len(rows) == num_rows and all(row.fault is None for row in rows)
    if name.endswith(".json"):
        assert [row.record for row in rows] == json.loads((SHARED / name).read_text(encoding="utf-8"))
