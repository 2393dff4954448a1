"""The figures of a data set: what became of its rows, how long they are, how much is learned, how well they pack."""

import re
from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from luthier.data.clean.exact import ExactDuplicates
from luthier.data.content import kind_of
from luthier.data.ledger import Ledger
from luthier.data.pack import pack
from luthier.data.pipeline import PreparedRow

PERCENTILES = (50, 90, 99)
_TOO_LONG = re.compile(r"the row has ([0-9]+) tokens, more than the [0-9]+ of data\.max_length")
_LONGER = re.compile(r"the row is longer than [0-9]+ tokens")
_MOST_BINS = 40


@dataclass(frozen=True)
class Lengths:
    """Tokens of rows before anything was taken from them, rows that are too long included."""

    tokens: NDArray[np.int64]
    """Sorted."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.tokens[-1])

    def percentile(self, share: float) -> int:
        """The length that so many per cent of the rows do not exceed: always that of a row."""
        return int(np.percentile(self.tokens, share, method="inverted_cdf"))

    def fitting(self, max_length: int) -> float:
        """The share of the rows that fit."""
        return float(np.searchsorted(self.tokens, max_length, side="right")) / len(self.tokens)

    def bins(self) -> tuple[list[int], list[int]]:
        """A histogram: the edges of its bins (the lower one belongs to a bin, the upper one does not) and counts.

        The bins are of equal width; where lengths differ very much, of equal ratio.
        """
        low, high = int(self.tokens[0]), self.longest + 1
        if self.percentile(99) > 20 * max(self.percentile(50), 1):
            edges = np.geomspace(max(low, 1), high, _MOST_BINS + 1)
            edges[0] = low
        else:
            edges = np.linspace(low, high, min(_MOST_BINS, high - low) + 1)
        whole = np.unique(np.round(edges).astype(np.int64))
        counts = np.histogram(self.tokens, whole)[0]
        return whole.tolist(), counts.tolist()


@dataclass(frozen=True)
class Packed:
    """How the rows fill micro-batches."""

    capacity: int
    micro_batches: int
    fill: float
    """Share of their room that rows take."""


@dataclass
class Summary:
    """Counts rows as they come. What it keeps of a row is its length; whole rows only of the samples.

    Args:
        sets: the names of the data sets, for the counts of each.
        num_samples: how many rows to keep to show them: the first ones of every set that can be used.
        rows: numbers of rows to keep besides, whatever became of them.
        find_duplicates: count rows that say the same as an earlier one.
    """

    sets: Sequence[str] = ()
    num_samples: int = 1
    rows: Collection[int] = ()
    find_duplicates: bool = False
    ledger: Ledger = field(default_factory=Ledger)
    by_set: list[Ledger] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    """How many usable rows say what: conversations, text, answers ..."""
    samples: list[PreparedRow] = field(default_factory=list)
    num_tokens: int = 0
    num_learned: int = 0
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """The first rows that say the same as an earlier one: where, and how it was found."""
    num_duplicates: int = 0
    num_unmeasured: int = 0
    """Rows that are too long and could not be shortened, whose length is not known."""

    def __post_init__(self) -> None:
        self.by_set = [Ledger() for _ in self.sets]
        self._packed_lengths = array("i")
        self._whole_lengths = array("i")
        self._seen = ExactDuplicates() if self.find_duplicates else None
        self._shown = Counter[int]()
        self._share = -(-self.num_samples // max(1, len(self.sets)))

    def add(self, one: PreparedRow) -> None:
        """Counts one row."""
        one.enter(self.ledger)
        if one.row.set < len(self.by_set):
            one.enter(self.by_set[one.row.set])
        usable = one.status != "dropped"
        if usable and one.content is not None:
            self.kinds[kind_of(one.content)] += 1
            self._compare(one)
        if one.encoded is not None:
            self._count_tokens(one)
        if one.reason and (found := _TOO_LONG.match(one.reason)):
            self._whole_lengths.append(int(found[1]))
        elif one.reason and _LONGER.match(one.reason):
            self.num_unmeasured += 1
        elif one.encoded is not None:
            self._whole_lengths.append(sum(len(example) for example in one.encoded.examples))
        first = usable and self._shown[one.row.set] < self._share and self._shown.total() < self.num_samples
        self._shown[one.row.set] += first
        if first or one.row.number in self.rows:
            self.samples.append(one)

    @property
    def lengths(self) -> Lengths | None:
        """How long the rows are; None if no row has tokens."""
        tokens = np.sort(np.array(self._whole_lengths, dtype=np.int64))
        return Lengths(tokens) if len(tokens) else None

    @property
    def learned_share(self) -> float:
        """Share of the tokens that are learned."""
        return self.num_learned / self.num_tokens if self.num_tokens else 0.0

    def packed(self, capacity: int) -> Packed | None:
        """How the rows fill micro-batches of so many tokens; None if no row has tokens."""
        tokens = np.array(self._packed_lengths, dtype=np.int64)
        if not len(tokens):
            return None
        packs = len(pack(tokens, capacity))
        return Packed(capacity, packs, float(tokens.sum()) / (packs * capacity))

    def _count_tokens(self, one: PreparedRow) -> None:
        assert one.encoded is not None, "the row has tokens"
        for example in one.encoded.examples:
            self._packed_lengths.append(len(example))
            self.num_tokens += len(example)
            self.num_learned += sum(int(np.count_nonzero(s.weights)) for s in example.segments)

    def _compare(self, one: PreparedRow) -> None:
        if self._seen is None or one.content is None:
            return
        if reason := self._seen.check(one.content, one.row.where):
            self.num_duplicates += 1
            if len(self.duplicates) < 5:
                self.duplicates.append((one.row.where, reason.partition(" (")[0]))
