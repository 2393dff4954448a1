"""How far a measured number may be from the one that more rows like these would give.

A number over rows is a function of a few sums that every row adds to (`Sums`): a mean, a loss per token, BLEU. Its
95 % interval is Wilson's where each row is right or wrong (it stays honest where all of them are), and otherwise the
percentile bootstrap over rows: the rows are drawn anew with replacement, 2,000 times from a fixed seed, and 95 % of
the numbers that the draws give lie in between (Efron 1979). A row is drawn with all its tokens, so tokens of one row
need not be independent. The difference of two models on the same rows is drawn with both at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
_Z = 1.959963984540054
"""The normal distribution has LEVEL of its mass within so many standard deviations."""
_PORTION = 1 << 22
"""Counts that are held at once."""


@dataclass(frozen=True)
class Sums:
    """What each row adds to each of a few sums, and the number that the sums stand for.

    Shape suffixes: R rows, K sums.
    """

    parts_RK: Floats
    value: Callable[[Floats], Floats]
    """From sums [..., K] to numbers [...]; NaN where there is no number."""
    binary: bool = False
    """Whether the number is the share of rows that are right, and each row is right or wrong."""

    def __len__(self) -> int:
        return len(self.parts_RK)

    @property
    def estimate(self) -> float:
        """The number over all rows."""
        return float(self.value(self.parts_RK.sum(0)))

    def of(self, places: Sequence[int]) -> "Sums":
        """The same number over some of the rows."""
        return Sums(self.parts_RK[np.asarray(places, dtype=np.int64)], self.value, self.binary)


@dataclass(frozen=True)
class Interval:
    """A range that holds the true number in 95 of 100 such experiments."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.3f}, {self.high:.3f}]"


def ratio(sums: Floats) -> Floats:
    """The first sum divided by the second."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(sums[..., 0], sums[..., 1])


def mean(values: Sequence[float], *, binary: bool = False) -> Sums:
    """The mean of one value for each row; rows that are NaN do not count."""
    values_R = np.asarray(values, dtype=np.float64)
    counts_R = ~np.isnan(values_R)
    return Sums(np.stack([np.nan_to_num(values_R), counts_R], axis=1).astype(np.float64), ratio, binary)


def interval(sums: Sums, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """The 95 % interval of a number; None where there are fewer than two rows, which say nothing of others."""
    if len(sums) < 2:
        return None
    if sums.binary:
        right, total = sums.parts_RK.sum(0)
        return wilson(float(right), float(total)) if total else None
    return _range(sums.value(drawn(sums.parts_RK, resamples, seed)))


def difference(one: Sums, other: Sums, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """The 95 % interval of `one - other`, of two models on the same rows in the same order."""
    assert len(one) == len(other), "the rows are the same"
    if len(one) < 2:
        return None
    both = drawn(np.concatenate([one.parts_RK, other.parts_RK], axis=1), resamples, seed)
    middle = one.parts_RK.shape[1]
    return _range(one.value(both[:, :middle]) - other.value(both[:, middle:]))


def drawn(parts_RK: Floats, resamples: int, seed: int) -> Floats:
    """The sums of rows that are drawn with replacement, as often as asked: [resamples, K]."""
    num_rows, draw = len(parts_RK), np.random.default_rng(seed)
    share_R = np.full(num_rows, 1 / num_rows)
    portion = max(1, _PORTION // num_rows)
    found = [
        draw.multinomial(num_rows, share_R, size=min(portion, resamples - start)) @ parts_RK
        for start in range(0, resamples, portion)
    ]
    return np.concatenate(found)


def wilson(right: float, total: float) -> Interval:
    """Wilson's score interval of a share (Wilson 1927)."""
    share, square = right / total, _Z * _Z
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = _Z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def _range(numbers: Floats) -> Interval | None:
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return None
    low, high = np.quantile(numbers, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
