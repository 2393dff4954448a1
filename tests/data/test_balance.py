"""Dealing packs to ranks: each once, numbers equal, costs nearly equal, the same on every rank."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from luthier.data.balance import CostModel, balance
from luthier.data.pack import pack

Costs = NDArray[np.float64]

some_costs = st.lists(st.one_of(st.floats(0, 100), st.sampled_from([1.0, 5.0])), max_size=40).map(np.array)
worlds = st.integers(1, 9)


def sums(costs: Costs, shares: list[NDArray[np.int64]]) -> Costs:
    return np.array([costs[packs].sum() for packs in shares])


@given(some_costs, worlds)
def test_each_pack_goes_to_one_rank_and_numbers_are_equal(costs: Costs, world: int) -> None:
    shares = balance(costs, world)
    assert len(shares) == world
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(costs)))
    counts = [len(packs) for packs in shares]
    assert max(counts) - min(counts) <= 1
    assert [packs.tolist() for packs in balance(costs, world)] == [packs.tolist() for packs in shares]


@given(some_costs, worlds)
def test_sums_differ_by_no_more_than_two_packs_do(costs: Costs, world: int) -> None:
    found = sums(costs, balance(costs, world))
    cheapest = 0.0 if len(costs) % world or not len(costs) else costs.min()
    assert np.ptp(found) <= (costs.max() if len(costs) else 0) - cheapest + 1e-9


@given(some_costs, worlds)
def test_no_swap_between_most_and_least_helps(costs: Costs, world: int) -> None:
    shares = balance(costs, world)
    found = sums(costs, shares)
    most, least = shares[found.argmax()], shares[found.argmin()]
    gap = np.ptp(found)
    for give in costs[most]:
        for take in [*costs[least], *([0.0] if len(least) < len(most) else [])]:  # 0: for an empty place
            assert abs(gap - 2 * (give - take)) >= gap * (1 - 1e-5) - 1e-9


@given(some_costs, worlds, st.randoms(use_true_random=False))
def test_the_order_of_packs_changes_no_sum(costs: Costs, world: int, random: object) -> None:
    shuffled = costs.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (np.sort(sums(given, balance(given, world))) for given in (costs, shuffled))
    np.testing.assert_allclose(first, second, rtol=1e-9)


@given(some_costs, worlds)
def test_each_rank_begins_with_its_costliest(costs: Costs, world: int) -> None:
    for packs in balance(costs, world):
        assert (np.diff(costs[packs]) <= 0).all()


@given(st.lists(st.floats(0, 100), min_size=4, max_size=4).map(np.array))
def test_four_packs_on_two_ranks_are_dealt_best(costs: Costs) -> None:
    best = min(np.ptp([costs[[a, b]].sum(), costs[[c, d]].sum()]) for a, b, c, d in permutations(range(4)))
    assert np.ptp(sums(costs, balance(costs, 2))) == pytest.approx(best, abs=1e-9)


def test_long_rows_weigh_more_than_their_tokens() -> None:
    model = CostModel.of(layers=30, attention_size=576, weights=134_000_000)
    one_long, many_short = model.of_rows(np.array([4096])), model.of_rows(np.full(64, 64))
    assert one_long.sum() > 1.2 * many_short.sum()
    assert CostModel.of(layers=30, attention_size=576, weights=134_000_000, adapters=True).per_pair == (
        pytest.approx(1.5 * model.per_pair)
    )
    assert CostModel().of_rows(np.array([3, 5])).tolist() == [3, 5]


def test_a_step_of_real_looking_packs_is_even() -> None:
    """Dealt in turn, ranks differ by a fifth; dealt by cost, by less than one in a hundred."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(np.log(1800), 0.8, 2000), 16, 8192).astype(np.int64)
    packs = pack(lengths, 8192)
    costs = packs.sums(CostModel(1 / 2000).of_rows(lengths))
    costs = costs[draw.permutation(len(costs))[:64]]
    in_turn = np.array([costs[rank::8].sum() for rank in range(8)])
    found = sums(costs, balance(costs, 8))
    assert in_turn.max() / in_turn.mean() > 1.05
    assert found.max() / found.mean() < 1.005
