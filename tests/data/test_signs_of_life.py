"""Whoever waits for rows hears of work that gives none for long, so that it is not taken for a process that hangs."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.config.data_section import SetSection
from luthier.data.sources import open_source, signs
from luthier.data.sources.files import LocalFile
from luthier.data.windows import Place, WindowMaker, Windows
from stream_parts import token_plan, write_tokens


@pytest.fixture
def deep(tmp_path: Path) -> tuple[Path, Any]:
    """A packed file of 80 MB of text, and a place near its end."""
    ids = json.dumps({"input_ids": [1] * 22}) + " " * 10_000_000 + "\n"
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress((ids * 8).encode(), 1))
    *_, before, _ = (position for _, position in open_source([SetSection(path=str(file))]).rows())
    return file, json.loads(json.dumps(before))


def test_the_way_to_a_place_deep_in_a_packed_file_is_told(tmp_path: Path, deep: tuple[Path, Any]) -> None:
    file, position = deep
    told: list[Any] = []
    WindowMaker(token_plan(file), 5).make(Place(0, 1, position), tmp_path / "w" / "0", told.append)
    assert [text for text in told if "a.jsonl.gz: unpacked 16,777,216 of 70," in str(text)]
    assert len(told) >= 4 and all("to where reading goes on" in str(text) for text in told)


def test_a_process_that_is_on_its_way_there_says_so(tmp_path: Path, deep: tuple[Path, Any]) -> None:
    """Each sign is a new beginning of the time after which a process is taken for one that hangs."""
    file, position = deep
    told: list[Any] = []
    windows = Windows(token_plan(file), 5, tmp_path / "w", keep=False, workers=1, tell=told.append)
    try:
        windows.open(Place(), ahead=False)
        windows.open(Place(0, 1, position), ahead=False)
    finally:
        windows.close()
    assert [text for text in told if "unpacked" in str(text)]


def test_counting_and_passing_over_rows_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x\n" * (3 * signs.EVERY_ROWS))
    source = open_source([SetSection(path=str(file), split="train[99%:]")])
    told: list[str] = []
    source.signs.tell = told.append
    assert len(list(source.rows())) == -(-3 * signs.EVERY_ROWS // 100)
    assert sum("rows counted" in text for text in told) == 3 == sum(": row " in text for text in told)


def test_a_file_that_takes_long_to_fetch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "_SECONDS", 0.02)
    monkeypatch.setattr(LocalFile, "is_here", False)
    monkeypatch.setattr(LocalFile, "local", lambda self: time.sleep(0.3))
    source = open_source([SetSection(path=str(write_tokens(tmp_path / "a.jsonl", 3)))])
    told: list[str] = []
    source.signs.tell = told.append
    assert len(list(source.rows())) == 3
    number = len(told)
    assert number >= 2 and set(told) == {f"{tmp_path / 'a.jsonl'} is being fetched"}
    time.sleep(0.1)
    assert len(told) == number, "nothing is told when it is there"
