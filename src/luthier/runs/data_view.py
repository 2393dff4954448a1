"""What is shown of a data set, in plain values: the terminal and the HTML page say the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ShownToken:
    """Some characters with the token ids behind them."""

    text: str
    ids: tuple[int, ...]
    weight: float
    """Weight as a target; 0: not learned."""


@dataclass(frozen=True)
class ShownRow:
    """A row to look at."""

    where: str
    number: int
    status: str
    note: str | None = None
    """Why it was dropped, or what was taken from it."""
    sequences: Sequence[tuple[str, Sequence[ShownToken]]] = ()
    """Each sequence with its name (empty if it is the only one)."""
    parts: Sequence[tuple[str, str]] = ()
    """Without tokens: what it says, in named parts."""
    cut: int = 0
    """Tokens at the ends of sequences that are not shown."""
    record: str = ""
    """The row as it was read."""


@dataclass(frozen=True)
class Histogram:
    """How many rows are how long."""

    edges: Sequence[int]
    counts: Sequence[int]
    """One fewer than edges."""
    limit: int
    """Longer rows are not used as they are."""
    marks: Sequence[tuple[str, int]] = ()
    """Lengths with a name, such as the median."""


@dataclass(frozen=True)
class DataView:
    """All that `luthier data inspect` found."""

    title: str
    facts: Sequence[str]
    """What was looked at, in a few words each."""
    ledger: dict[str, Any]
    """`Ledger.to_json()`."""
    formats: Sequence[tuple[str, str]]
    """Each file with the formats of its rows."""
    sets: Sequence[tuple[str, dict[str, Any]]] = ()
    """Each data set with its ledger, where there are several."""
    tiles: Sequence[tuple[str, str]] = ()
    """Figures with their names."""
    histogram: Histogram | None = None
    template: Sequence[tuple[str, str]] = ()
    """What the chat template does, by name."""
    notes: Sequence[str] = ()
    advice: Sequence[str] = ()
    rows: Sequence[ShownRow] = field(default_factory=tuple)
