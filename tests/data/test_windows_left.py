"""What windows leave behind: a word when cleaning forgot rows, and no half-written folders."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from luthier.config.data_section import CleanSection
from luthier.data import cache
from luthier.data.clean import cleaner as cleaning
from luthier.data.clean.exact import ExactDuplicates
from luthier.data.windows import Windows
from stream_parts import steps_of, token_plan, token_stream, write_tokens


def test_that_cleaning_forgot_rows_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "ExactDuplicates", lambda: ExactDuplicates(2))
    plan = token_plan(write_tokens(tmp_path / "a.jsonl", 20), clean=CleanSection(exact_duplicates=True))
    source = token_stream(plan, tmp_path / "w", window_rows=7)
    steps_of(source, total=9)
    (told,) = [line for line in source.notes.lines() if "exact_duplicates" in line]
    assert "to bound the memory" in told


def test_what_a_worker_left_half_written_is_removed(tmp_path: Path) -> None:
    windows = Windows(token_plan(write_tokens(tmp_path / "a.jsonl", 5)), 7, tmp_path / "w", keep=True)
    entry = tmp_path / "w" / windows.key / "0-0"
    with cache.new_entry(entry, {}) as own:
        other = own.with_name(own.name.replace(f".{os.getpid()}.", f".{os.getppid()}."))
        other.mkdir()
        process = SimpleNamespace(pid=os.getpid())
        windows._worker = SimpleNamespace(close=lambda: None, process=process)  # pyright: ignore
        windows.close()
        assert list(entry.parent.iterdir()) == [other]
        own.mkdir()
