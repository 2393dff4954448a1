"""How a run is getting on: a live display on a terminal, plain lines in a log file or a notebook."""

import math
import os
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from luthier.runs.figures import duration, show

# The values that are shown, in this order; a step may carry more.
SHOWN = ("loss", "eval_loss", "lr", "grad_norm", "tokens_per_second")
_LABELS = {"eval_loss": "eval loss", "grad_norm": "grad norm", "tokens_per_second": "tokens/s"}


class TrainProgress:
    """The steps of a run with loss, learning rate, speed, remaining time and memory.

    Args:
        total_steps: steps of the whole run.
        first_step: steps that were done before, when a run is resumed.
        console: where to show it; standard output if absent.
        every_seconds: on anything but a terminal, the least time between two lines. The first and the last
            step always have one.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        first_step: int = 0,
        console: Console | None = None,
        every_seconds: float = 10.0,
    ):
        self.total_steps = total_steps
        self.done = first_step
        self.values: dict[str, float] = {}
        self.gpu = ""
        self._console = console or Console(highlight=False)
        self._every_seconds = every_seconds
        self._durations: deque[float] = deque(maxlen=50)
        self._last_step = time.monotonic()
        self._last_line = -math.inf
        self._printed_step = -1
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(self, console=self._console, refresh_per_second=4) if live else None

    def __enter__(self) -> Self:
        self._last_step = time.monotonic()
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()
        elif self.values and self._printed_step != self.done:
            self._print_line()

    def step(self, values: Mapping[str, float], *, gpu: str = "") -> None:
        """Counts one step. `values` are plain numbers (see `SHOWN`); `gpu` is a text such as `12.3 GiB`."""
        now = time.monotonic()
        self._durations.append(now - self._last_step)
        self._last_step = now
        self.done += 1
        self.values.update(values)
        self.gpu = gpu or self.gpu
        due = now - self._last_line >= self._every_seconds
        if self._live is None and (due or self.done >= self.total_steps):
            self._print_line()

    def evaluated(self, loss: float) -> None:
        """Notes an evaluation loss. The time it took does not count as time of the next step."""
        self.values["eval_loss"] = loss
        self._last_step = time.monotonic()
        if self._live is None:
            self.message(f"step {self.done}: eval loss {show('eval_loss', loss)}")

    def message(self, text: str) -> None:
        """Says something without disturbing the display."""
        # As Text, because a message may hold brackets, which rich would read as a style.
        self._console.print(Text(text), soft_wrap=True)
        self._flush()

    @property
    def remaining_seconds(self) -> float | None:
        """Estimate from the median of the last 50 steps; None before the first."""
        if not self._durations:
            return None
        return statistics.median(self._durations) * max(0, self.total_steps - self.done)

    def facts(self) -> list[str]:
        """The values as short texts, in the order they are shown in."""
        found = [
            f"{_LABELS.get(name, name)} {show(name, self.values[name])}"
            for name in SHOWN
            if name in self.values
        ]
        found.append(f"memory {resident_bytes() / 2**30:.1f} GiB")
        return found + ([f"gpu {self.gpu}"] if self.gpu else [])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        bar.add_row(
            Text(f"step {self.done}/{self.total_steps}", style="bold"),
            ProgressBar(total=max(1, self.total_steps), completed=self.done),
            Text(self._remaining()),
        )
        yield Group(bar, Text(" · ".join(self.facts()), style="dim"))

    def _remaining(self) -> str:
        seconds = self.remaining_seconds
        return "" if seconds is None else f"{duration(seconds)} left"

    def _print_line(self) -> None:
        facts = [f"step {self.done}/{self.total_steps}", *self.facts()]
        if self.done < self.total_steps:
            facts.append(self._remaining())
        self._console.print(Text("  ".join(fact for fact in facts if fact)), soft_wrap=True)
        self._flush()
        self._last_line = time.monotonic()
        self._printed_step = self.done

    def _flush(self) -> None:
        """A log file must show a line when it is said, not when a buffer is full."""
        self._console.file.flush()


def resident_bytes() -> int:
    """Memory of this process that is in RAM now; the most it ever was where the system tells no more."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
