"""The display of a run: plain lines where nobody looks, a live bar on a terminal."""

import io
import math
import mmap
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from luthier.runs import progress as module
from luthier.runs.figures import duration, exponent, show
from luthier.runs.progress import TrainProgress, resident_bytes


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module.time, "monotonic", found)
    return found


def plain() -> tuple[Console, Callable[[], list[str]]]:
    text = io.StringIO()
    return Console(file=text, width=40, highlight=False), lambda: text.getvalue().splitlines()


def test_plain_lines_come_at_intervals_and_at_the_ends(clock: Clock) -> None:
    console, lines = plain()
    with TrainProgress(100, console=console, every_seconds=10) as progress:
        for _ in range(100):
            clock.now += 1.0
            progress.step({"loss": 1.25, "lr": 2e-4, "tokens_per_second": 1234.5})
    steps = [int(line.split()[1].split("/")[0]) for line in lines()]
    assert steps == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]
    assert lines()[0].startswith("step 1/100  loss 1.25  lr 2e-4  tokens/s 1,234  memory ")
    assert lines()[0].endswith("1:39 min left") and "left" not in lines()[-1]


def test_a_run_that_stops_early_shows_its_last_step_once(clock: Clock) -> None:
    console, lines = plain()
    with TrainProgress(100, console=console) as progress:
        for loss in (3.0, 2.0):
            progress.step({"loss": loss})
    assert [line.split("  ")[:2] for line in lines()] == [["step 1/100", "loss 3"], ["step 2/100", "loss 2"]]
    console, lines = plain()
    with TrainProgress(100, console=console):
        pass
    assert lines() == []


def test_a_resumed_run_counts_on(clock: Clock) -> None:
    console, lines = plain()
    with TrainProgress(10, first_step=7, console=console) as progress:
        assert progress.remaining_seconds is None
        clock.now += 4.0
        progress.step({"loss": 1.0}, gpu="1.5 GiB")
        assert progress.remaining_seconds == 8.0
    assert lines()[0].startswith("step 8/10") and "gpu 1.5 GiB" in lines()[0]


def test_evaluation_does_not_spoil_the_estimate(clock: Clock) -> None:
    console, lines = plain()
    with TrainProgress(100, console=console) as progress:
        for _ in range(10):
            clock.now += 1.0
            progress.step({"loss": 1.0})
            clock.now += 500.0
            progress.evaluated(0.75)
        assert progress.remaining_seconds == 90.0
    assert "step 1: eval loss 0.75" in lines()
    assert any(line.startswith("step 2/100  loss 1  eval loss 0.75") for line in lines())


def test_numbers_that_are_not_finite_and_messages_with_brackets(clock: Clock) -> None:
    console, lines = plain()
    with TrainProgress(2, console=console) as progress:
        progress.message("[bold]row[/bold] [/] 12 of a long message that is longer than the console is wide")
        progress.step({"loss": math.nan, "grad_norm": math.inf})
    assert lines()[0].startswith("[bold]row[/bold] [/] 12 of a long") and lines()[0].endswith("wide")
    assert "loss nan  grad norm inf" in lines()[1]


@pytest.mark.parametrize("width", [20, 40, 120])
def test_a_terminal_gets_a_bar_and_messages_above_it(width: int) -> None:
    text = io.StringIO()
    console = Console(file=text, width=width, height=20, force_terminal=True, _environ={"TERM": "xterm"})
    with TrainProgress(4, console=console) as progress:
        progress.step({"loss": 1.25})
        progress.message("saved")
        progress.evaluated(0.5)
        progress.step({"loss": 1.0})
    shown = text.getvalue()
    assert "step 2/4" in shown and "saved" in shown and "eval loss" in shown.replace("\n", " ")
    assert shown.index("saved") < shown.rindex("step 2/4")


def test_the_cursor_comes_back_when_a_run_fails() -> None:
    text = io.StringIO()
    console = Console(file=text, width=60, force_terminal=True, _environ={"TERM": "xterm"})
    with pytest.raises(ValueError, match="mine"), TrainProgress(4, console=console):
        raise ValueError("mine")
    assert text.getvalue().rindex("\x1b[?25h") > text.getvalue().rindex("\x1b[?25l")


def test_memory_is_that_of_this_process() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 64 << 20) as held:  # new pages for sure: a heap may have room from before
        held.write(b"x" * (64 << 20))
        assert 48 << 20 < resident_bytes() - before < 160 << 20


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("loss", 0.0, "0"),
        ("loss", 1.23456, "1.235"),
        ("loss", -12.5, "-12.5"),
        ("loss", 0.00012, "1.2e-4"),
        ("loss", 123456.0, "123,456"),
        ("loss", 1.5e9, "1.5e9"),
        ("lr", 2e-4, "2e-4"),
        ("lr", 0.0, "0"),
        ("tokens_per_second", 12345.6, "12,346"),
        ("loss", math.nan, "nan"),
        ("loss", -math.inf, "-inf"),
        ("loss", None, "-"),
    ],
)
def test_numbers_as_people_write_them(name: str, value: float | None, text: str) -> None:
    assert show(name, value) == text


@given(st.floats(-1e300, 1e300))
def test_what_is_shown_is_near_what_is_meant(value: float) -> None:
    assert float(show("loss", value).replace(",", "")) == pytest.approx(value, rel=5.1e-3)
    assert float(exponent(value)) == pytest.approx(value, rel=5.1e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (185, "3:05 min"), (7385, "2:03:05 h")],
)
def test_times_as_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
