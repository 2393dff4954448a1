"""Metrics: what is written is read, whatever happens between the lines."""

import errno
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import RunError
from luthier.runs import lines
from luthier.runs.lines import LineFile
from luthier.runs.metrics import RESERVED, MetricsWriter, last_value, read_metrics, series

names = st.text(min_size=1, max_size=8).filter(lambda name: name not in RESERVED)
values = st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=8))
rows = st.lists(
    st.tuples(st.text(max_size=5), st.integers(0, 50), st.dictionaries(names, values, max_size=4)), max_size=8
)


def write_all(path: Path, content: list[tuple[str, int, dict]]) -> None:
    with MetricsWriter(path) as writer:
        for kind, step, found in content:
            writer.write(kind, step, found)


def expected(kind: str, step: int, found: dict) -> dict:
    lost = [name for name, value in found.items() if isinstance(value, float) and not math.isfinite(value)]
    row = {
        "kind": kind,
        "step": step,
        **{name: None if name in lost else value for name, value in found.items()},
    }
    return row | ({"nonfinite": lost} if lost else {})


@given(rows)
def test_what_is_written_is_read(content: list[tuple[str, int, dict]]) -> None:
    with TemporaryDirectory() as place:
        path = Path(place, "metrics.jsonl")
        write_all(path, content)
        found = read_metrics(path)
        for row in found:
            assert isinstance(row.pop("time"), float)
        assert found == [expected(*row) for row in content]
        for line in path.read_bytes().splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@given(rows.filter(bool), st.integers(0, 10_000))
def test_a_file_that_ends_anywhere_gives_the_whole_lines_before(content: list, chosen: int) -> None:
    """Cut at any byte: a prefix of the rows is read, and the next row that is written follows it."""
    with TemporaryDirectory() as place:
        path = Path(place, "metrics.jsonl")
        write_all(path, content)
        whole, before = path.read_bytes(), read_metrics(path)
        cut = chosen % (len(whole) + 1)
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n") + (whole[cut - 1 : cut + 1] == b"}\n")
        assert read_metrics(path) == before[:complete]
        write_all(path, [("train", 99, {"loss": 0.5})])
        after = read_metrics(path)
        assert after[:-1] == before[:complete] and after[-1]["step"] == 99


@given(rows, st.integers(-1, 50))
def test_truncation_leaves_each_step_once(content: list, step: int) -> None:
    with TemporaryDirectory() as place:
        path = Path(place, "metrics.jsonl")
        write_all(path, content)
        before = read_metrics(path)
        with MetricsWriter(path) as writer:
            writer.truncate_after(step)
            assert read_metrics(path) == [row for row in before if row["step"] <= step]
            writer.write("train", step + 1, {"loss": 1.0})
        assert read_metrics(path)[-1]["step"] == step + 1


def test_each_row_is_there_at_once_and_numbers_of_any_library_pass(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write("train", 1, {"loss": np.float32(0.5), "count": np.asarray(3), "bad": np.float64("inf")})
        (row,) = read_metrics(path)
    assert (row["loss"], row["count"], row["bad"], row["nonfinite"]) == (0.5, 3.0, None, ["bad"])


def test_reserved_names_are_ours(tmp_path: Path) -> None:
    with (
        MetricsWriter(tmp_path / "m") as writer,
        pytest.raises(AssertionError, match="step is a name of the row"),
    ):
        writer.write("train", 1, {"step": 2.0})


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\nnonsense\n{"kind": "train", "step": 2}\n')
    with pytest.raises(
        RunError, match=r"metrics\.jsonl, line 2: not a JSON object: b'nonsense'.*remove the line"
    ):
        read_metrics(path)
    path.write_text("[1]\n")
    with pytest.raises(RunError, match="line 1: not a JSON object"):
        read_metrics(path)
    assert read_metrics(tmp_path / "absent") == []


def test_a_disk_that_fills_takes_no_half_line(small_disk: Path) -> None:
    path = small_disk / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        count = 0
        with pytest.raises(RunError, match="is full"):
            while True:
                writer.write("train", count, {"text": "x" * 5000})
                count += 1
        assert count > 100
        assert [row["step"] for row in read_metrics(path)] == list(range(count))
        assert path.read_bytes().endswith(b"}\n")


def test_a_write_that_fails_half_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    write_all(path, [("train", 1, {"loss": 1.0})])
    whole = path.read_bytes()
    write = lines.os.write
    calls: list[int] = []

    def filling(descriptor: int, content: bytes) -> int:
        calls.append(len(content))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[: len(content) // 2])

    with LineFile(path) as file:
        monkeypatch.setattr(lines.os, "write", filling)
        with pytest.raises(RunError, match="is full"):
            file.add('{"kind": "train", "step": 2}')
    assert len(calls) == 2 and path.read_bytes() == whole


def test_a_read_only_disk_says_so(small_disk: Path, freeze: Callable[[], None]) -> None:
    freeze()
    with pytest.raises(RunError, match="read-only"):
        MetricsWriter(small_disk / "metrics.jsonl")


def test_killed_while_writing_every_row_but_the_last_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    script = (
        "import sys, itertools; from pathlib import Path; from luthier.runs.metrics import MetricsWriter\n"
        "writer = MetricsWriter(Path(sys.argv[1])); print('ready', flush=True)\n"
        "for step in itertools.count(int(sys.argv[2])): writer.write('train', step, {'text': 'x' * 3000})"
    )
    steps = 0
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path), str(steps)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        size, limit = path.stat().st_size if steps else 0, time.monotonic() + 60
        while not (path.exists() and path.stat().st_size > size + 10_000) and time.monotonic() < limit:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = [row["step"] for row in read_metrics(path)]
        assert found == list(range(len(found))) and len(found) > steps
        steps = len(found)


def test_series_keep_gaps_and_last_value_passes_over_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_all(
        path,
        [
            ("train", 1, {"loss": 2.0}),
            ("eval", 1, {"loss": 9.0}),
            ("train", 2, {"lr": 1.0}),
            ("train", 3, {"loss": 1.0, "ok": True}),
            ("train", 4, {"loss": math.nan}),
        ],
    )
    rows = read_metrics(path)
    assert series(rows, "train", "loss") == [(1, 2.0), (3, 1.0), (4, None)]
    assert last_value(rows, "train", "loss") == 1.0
    assert series(rows, "train", "ok") == [] and last_value(rows, "train", "missing") is None
