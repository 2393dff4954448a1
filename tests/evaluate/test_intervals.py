"""Laws of intervals: they hold the truth as often as they say, pairs help, and what draws them is fixed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from luthier.evaluate.intervals import Sums, difference, interval, mean, ratio, wilson


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (3, 17), (450, 1000)])
def test_shares_have_wilsons_interval(right: int, total: int) -> None:
    found = interval(mean([1.0] * right + [0.0] * (total - right), binary=True))
    known = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert found is not None and (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-12)


def test_the_interval_holds_the_truth_in_about_95_of_100_experiments() -> None:
    draw, held, trials = np.random.default_rng(3), 0, 400
    for _ in range(trials):
        # rows of unequal numbers of tokens: a loss per token, whose true value is 2
        tokens = draw.integers(1, 20, size=60)
        parts = np.stack([tokens * draw.gamma(4.0, 0.5, size=60), tokens], axis=1).astype(float)
        found = interval(Sums(parts, ratio), resamples=400, seed=1)
        assert found is not None
        held += found.low <= 2.0 <= found.high
    assert 0.90 <= held / trials <= 0.98


def test_the_bootstrap_agrees_with_the_normal_approximation_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=1000)
    found = interval(mean(values.tolist()))
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_pairs_are_drawn_together() -> None:
    """Two models whose rows differ by the same amount differ by that amount for certain."""
    first = np.random.default_rng(1).normal(0, 10, size=50)
    one, other = mean((first + 0.5).tolist()), mean(first.tolist())
    found = difference(one, other)
    assert found is not None and (found.low, found.high) == pytest.approx((0.5, 0.5))
    alone = interval(one)
    assert alone is not None and alone.high - alone.low > 2


def test_the_same_rows_give_the_same_interval_again() -> None:
    values = np.random.default_rng(2).normal(size=30).tolist()
    assert interval(mean(values)) == interval(mean(values)) != interval(mean(values), seed=1)


def test_one_row_says_nothing_of_others() -> None:
    assert interval(mean([1.0])) is None and difference(mean([1.0]), mean([2.0])) is None
    assert interval(mean([float("nan")] * 3, binary=True)) is None


@settings(max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20))
def test_the_number_lies_within_the_range_of_its_rows(values: list[float]) -> None:
    found = interval(mean(values), resamples=20)
    assert found is not None
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_rows_that_do_not_apply_do_not_count() -> None:
    assert mean([1.0, float("nan"), 0.0]).estimate == 0.5
    assert wilson(1, 2).low == pytest.approx(interval(mean([1.0, float("nan"), 0.0], binary=True)).low)  # type: ignore[union-attr]
