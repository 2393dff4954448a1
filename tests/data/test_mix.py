"""Draws without a state: the same for the same key and place, in whatever order they are asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.mix import Draws, Phases, SetDraws, shares, times

places = st.lists(st.integers(0, 20_000), min_size=1, max_size=30)


@given(places, st.integers(0, 2**31))
def test_a_draw_depends_on_its_place_alone(numbers: list[int], key: int) -> None:
    for make in (Draws, Phases, lambda key: SetDraws([0.2, 0.5, 0.3], key)):
        one = make(key)
        assert [one(number) for number in numbers] == [make(key)(number) for number in numbers]


def test_draws_are_uniform_and_keys_are_independent() -> None:
    first, second = (np.array([draws(n) for n in range(20_000)]) for draws in (Draws(1, 2), Draws(1, 3)))
    for values in (first, second):
        assert values.min() >= 0 and values.max() < 1
        np.testing.assert_allclose(np.histogram(values, 10, (0, 1))[0], 2000, atol=200)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_phases_are_spread_evenly() -> None:
    phases = Phases(7)
    values = np.array([phases(number) for number in range(8192)])
    for half in (values[:4096], values[4096:]):
        np.testing.assert_allclose(np.histogram(half, 64, (0, 1))[0], 64, atol=1)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05


@given(
    st.lists(st.tuples(st.floats(1, 1e9), st.floats(1e-3, 1e3)), min_size=1, max_size=6),
    st.floats(0.2, 20),
)
def test_shares_are_powers_of_weighted_sizes(sets: list[tuple[float, float]], temperature: float) -> None:
    sizes, weights = zip(*sets, strict=True)
    found = shares(sizes, weights, temperature)
    assert sum(found) == pytest.approx(1)
    for index in range(1, len(sets)):
        ratio = (sizes[index] * weights[index]) / (sizes[0] * weights[0])
        assert found[index] == pytest.approx(found[0] * ratio ** (1 / temperature), rel=1e-6, abs=1e-300)


@given(st.floats(0, 1, exclude_max=True), st.floats(0.01, 5), st.integers(1, 30))
def test_times_add_up(phase: float, repeat: float, epochs: int) -> None:
    counts = [times(phase, repeat, epoch) for epoch in range(epochs)]
    assert all(int(repeat) <= count <= int(repeat) + 1 for count in counts)
    assert abs(sum(counts) - epochs * repeat) <= 1
