"""A run that is asked to stop does not wait for rows first: the wait ends, and nothing is taken or lost."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from luthier.data.stream import StreamSource
from luthier.errors import StopWaiting
from stream_parts import steps_of, token_plan, token_stream, write_tokens


@contextmanager
def asked_to_stop(source: StreamSource) -> Iterator[None]:
    """Signals come again and again, and their handler does what a run's does."""
    before = signal.signal(signal.SIGUSR1, lambda number, frame: source.stop_waiting())
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.5):
            os.kill(os.getpid(), signal.SIGUSR1)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        yield
    finally:
        ended.set()
        asker.join()
        signal.signal(signal.SIGUSR1, before)


def until_it_waits(source: StreamSource, found: list[list[Any]]) -> list[list[Any]]:
    """The steps behind those found until a signal ends a wait."""
    found = list(found)
    with asked_to_stop(source), pytest.raises(StopWaiting):
        while True:
            found += steps_of(source, first=len(found), total=99, most=1)
    return found


def test_a_wait_for_a_process_that_does_not_answer_ends(tmp_path: Path) -> None:
    plan = token_plan(write_tokens(tmp_path / "a.jsonl", 40))
    whole = steps_of(token_stream(plan, tmp_path / "v", window_rows=10), total=9)
    source = token_stream(plan, tmp_path / "w", window_rows=10, workers=1)
    try:
        before = steps_of(source, total=9, most=1)
        worker = source._windows.windows._worker  # pyright: ignore
        os.kill(worker.process.pid, signal.SIGSTOP)  # pyright: ignore
        before = until_it_waits(source, before)
        state = source.state()
    finally:
        source.close()
    assert 1 <= len(before) < len(whole) and state["step"] == len(before)
    again = token_stream(plan, tmp_path / "u", window_rows=10)
    again.restore(state)
    assert before + steps_of(again, first=len(before), total=9) == whole
    assert again.ledger.read == 40


def test_a_step_that_waits_in_its_midst_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = token_plan(write_tokens(tmp_path / "a.jsonl", 40))
    options: dict[str, Any] = {"window_rows": 10, "tokens_per_step": 160}
    whole = steps_of(token_stream(plan, tmp_path / "v", **options), total=9)
    source = token_stream(plan, tmp_path / "w", **options)
    windows = source._windows.windows
    assert windows is not None
    original, opened = type(windows)._open, list[int]()

    def slow(self: Any, place: Any, *options: Any) -> Path:
        opened.append(place.window)
        if place.window == 3:
            self.stop_waiting()
        return original(self, place, *options)

    monkeypatch.setattr(type(windows), "_open", slow)
    before: list[list[Any]] = []
    with pytest.raises(StopWaiting):
        while True:
            source.ready(99)
            before.append(steps_of(source, first=len(before), total=99, most=1)[0])
    monkeypatch.setattr(type(windows), "_open", original)
    assert opened[-1] == 3
    assert before + steps_of(source, first=len(before), total=99) == whole, "the same source, or one restored"
    assert source.ledger.read == 40


def test_a_pipe_that_gives_nothing_more_ends_the_wait(tmp_path: Path) -> None:
    rows = write_tokens(tmp_path / "a.jsonl", 12).read_bytes()
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)  # so that it never ends
    try:
        os.write(held, rows)
        source = token_stream(token_plan(pipe), tmp_path / "w", window_rows=5, epochs=None)
        found = until_it_waits(source, steps_of(source, total=99, most=1))
        assert len(found) >= 1 and source.state()["step"] == len(found)
        source.stop_waiting()  # nobody waits now: nothing happens
        source.close()
    finally:
        os.close(held)
