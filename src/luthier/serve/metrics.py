"""Numbers about the server for Prometheus, in its text format. They count; they never hold what was said."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper ends of the histograms' buckets."""
Labels = tuple[tuple[str, str], ...]


@dataclass
class Histogram:
    """How long something took."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, labels: Labels) -> Iterator[str]:
        """As Prometheus reads it: buckets hold all below them, too."""
        below = 0
        for end, count in zip((*map(repr, SECONDS), "+Inf"), self.counts, strict=True):
            below += count
            yield _line(f"{name}_bucket", (*labels, ("le", end)), below)
        yield _line(f"{name}_sum", labels, self.total)
        yield _line(f"{name}_count", labels, below)


class Metrics:
    """All that is counted."""

    def __init__(self) -> None:
        self._counters: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._histograms: dict[str, dict[Labels, Histogram]] = defaultdict(lambda: defaultdict(Histogram))

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Adds to a counter of `KINDS`."""
        assert name in _COUNTERS, name
        self._counters[name][tuple(labels.items())] += amount

    def took(self, name: str, seconds: float, **labels: str) -> None:
        """Adds to a histogram of `KINDS`."""
        assert name in _HISTOGRAMS, name
        self._histograms[name][tuple(labels.items())].add(seconds)

    def text(self, gauges: Mapping[str, float]) -> str:
        """Everything, with what is measured now."""
        return "\n".join([*self._lines(gauges), ""])

    def _lines(self, gauges: Mapping[str, float]) -> Iterator[str]:
        for name, told in _COUNTERS.items():
            yield from (f"# HELP {name} {told}", f"# TYPE {name} counter")
            yield from (_line(name, labels, value) for labels, value in self._counters[name].items())
        for name, told in _HISTOGRAMS.items():
            yield from (f"# HELP {name} {told}", f"# TYPE {name} histogram")
            for labels, histogram in self._histograms[name].items():
                yield from histogram.lines(name, labels)
        for name, told in _GAUGES.items():
            yield from (f"# HELP {name} {told}", f"# TYPE {name} gauge")
            yield _line(name, (), gauges[name])


_COUNTERS = {
    "luthier_requests_total": "Requests by route and status.",
    "luthier_prompt_tokens_total": "Tokens of prompts that were taken, by model.",
    "luthier_known_prompt_tokens_total": "Of these, tokens that were known from earlier prompts and answers.",
    "luthier_generated_tokens_total": "Tokens that were generated, by model.",
    "luthier_cancelled_total": "Requests whose client left before the end.",
    "luthier_refused_total": "Requests that were refused, by reason.",
}
_HISTOGRAMS = {
    "luthier_request_seconds": "From a request's arrival to the end of its answer, by route.",
    "luthier_first_token_seconds": "From an order to its first token, by model.",
}
_GAUGES = {
    "luthier_answers_going": "Answers under way.",
    "luthier_orders_waiting": "Orders in the queue.",
    "luthier_requests_open": "Requests that are not answered yet.",
}


def _line(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    number = int(value) if float(value).is_integer() else value
    return f"{name}{{{inner}}} {number}" if inner else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
