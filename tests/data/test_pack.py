"""Packing: every row once, nothing over capacity, the packs of best-fit-decreasing, full, the same every time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from luthier.data.pack import Packs, pack


@st.composite
def problems(draw: st.DrawFn) -> tuple[NDArray[np.int64], int]:
    capacity = draw(st.integers(1, 300))
    few = draw(st.lists(st.integers(0, capacity), min_size=1, max_size=8))
    length = st.one_of(
        st.integers(0, capacity), st.sampled_from(few)
    )  # many rows of one length are one group
    lengths = draw(st.lists(length, max_size=120))
    return np.array(lengths, dtype=np.int64), capacity


def row_by_row(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """The textbook algorithm: each row looks at every pack. Of equally full ones it takes the last changed."""
    packs: list[list[int]] = []
    spaces: list[tuple[int, int, int]] = []  # space left, minus the time of its last change, pack
    for time, row in enumerate(sorted(range(len(lengths)), key=lambda row: -lengths[row])):
        room = [state for state in spaces if state[0] >= lengths[row]]
        if room:
            spaces.remove(min(room))
            space, _, chosen = min(room)
        else:
            space, chosen = capacity, len(packs)
            packs.append([])
        packs[chosen].append(row)
        spaces.append((space - int(lengths[row]), -time, chosen))
    return packs


@given(problems())
def test_every_row_once_and_no_pack_over_capacity(problem: tuple[NDArray[np.int64], int]) -> None:
    lengths, capacity = problem
    packs = pack(lengths, capacity)
    assert sorted(packs.rows_N.tolist()) == list(range(len(lengths)))
    assert all(len(rows) and lengths[rows].sum() <= capacity for rows in packs)


@given(problems())
def test_it_is_best_fit_decreasing_row_by_row(problem: tuple[NDArray[np.int64], int]) -> None:
    assert [rows.tolist() for rows in pack(*problem)] == row_by_row(*problem)


@given(problems(), st.sampled_from([np.int32, np.uint16, np.int64]))
def test_the_kind_of_integer_changes_nothing(
    problem: tuple[NDArray[np.int64], int], kind: type[np.integer]
) -> None:
    lengths, capacity = problem
    again = pack(lengths.astype(kind), capacity)
    assert [rows.tolist() for rows in again] == [rows.tolist() for rows in pack(lengths, capacity)]


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(0, 99))
def test_a_large_capacity_is_packed_alike(small: list[int], more: int) -> None:
    """Beyond 16 bits another sort is used; lengths and capacity times a number are the same problem."""
    lengths, factor = np.array(small, dtype=np.int64), 300 + more
    wide = pack(lengths * factor, 300 * factor)
    assert [rows.tolist() for rows in wide] == [rows.tolist() for rows in pack(lengths, 300)]


@given(problems(), st.randoms(use_true_random=False))
def test_how_full_packs_are_does_not_depend_on_the_order(
    problem: tuple[NDArray[np.int64], int], random: object
) -> None:
    lengths, capacity = problem
    shuffled = lengths.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    fills = [sorted(pack(rows, capacity).sums(rows)) for rows in (lengths, shuffled)]
    assert fills[0] == fills[1]


@given(problems(), st.integers(0, 5))
def test_packs_are_a_sequence(problem: tuple[NDArray[np.int64], int], start: int) -> None:
    lengths, capacity = problem
    packs = pack(lengths, capacity)
    each = list(packs)
    assert len(each) == len(packs)
    assert all(
        (packs[i] == rows).all() and (packs[i - len(each)] == rows).all() for i, rows in enumerate(each)
    )
    for part in (slice(start, None, 2), slice(None, start), slice(-start, None)):
        assert [rows.tolist() for rows in packs[part]] == [rows.tolist() for rows in each[part]]
    assert packs.sums(lengths).tolist() == [lengths[rows].sum() for rows in each]
    numbers = np.random.default_rng(start).permutation(len(lengths))
    assert [r.tolist() for r in packs.renumbered(numbers)] == [numbers[rows].tolist() for rows in each]
    with pytest.raises(IndexError):
        packs[len(each)]


def samples(kind: str, seed: int) -> NDArray[np.int64]:
    draw, n = np.random.default_rng(seed), 10_000
    if kind == "chat":
        lengths = draw.lognormal(np.log(500), 0.9, n)
    elif kind == "long":
        lengths = draw.lognormal(np.log(1800), 0.5, n)
    else:
        lengths = np.concatenate([draw.normal(2300, 150, n // 2), draw.normal(1400, 400, n // 2)])
    return np.clip(lengths, 16, 4096).astype(np.int64)


def fewest_packs(lengths: NDArray[np.int64], capacity: int) -> int:
    """A bound below which nobody can pack these rows (Martello and Toth, 1990)."""
    descending = np.sort(lengths)[::-1]
    best = -(-int(lengths.sum()) // capacity)
    large = descending[descending * 2 > capacity]
    small = descending[descending * 2 <= capacity]
    for least in np.unique(small):
        # rows of more than `capacity - least` share with no other that is counted; nor do two large ones
        middle = large[large <= capacity - least]
        over = int(small[small >= least].sum() - (len(middle) * capacity - middle.sum()))
        best = max(best, len(large) + max(0, -(-over // capacity)))
    return max(best, len(large))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("kind", "goal"), [("chat", 0.99), ("long", 0.985), ("awkward", 0.895)])
def test_packs_are_full(kind: str, goal: float, seed: int) -> None:
    lengths = samples(kind, seed)
    packs = pack(lengths, 4096)
    fill = lengths.sum() / (len(packs) * 4096)
    # two awkward rows of more than 2,048 tokens fit into no pack together; where there are too many of them for
    # the goal, the fewest packs that are possible are made
    assert fill >= goal or (kind == "awkward" and len(packs) == fewest_packs(lengths, 4096))


@given(problems())
def test_nobody_needs_fewer_packs_than_the_bound(problem: tuple[NDArray[np.int64], int]) -> None:
    lengths, capacity = problem
    number = len(pack(lengths, capacity))
    assert (
        fewest_packs(lengths, capacity) <= number <= 11 / 9 * fewest_packs_of_all(lengths, capacity) + 6 / 9
    )


def fewest_packs_of_all(lengths: NDArray[np.int64], capacity: int) -> int:
    """An upper bound of the optimum: next fit in any order can only need more packs than the best packing."""
    packs, space = 0, -1
    for length in lengths.tolist():
        if length > space:
            packs, space = packs + 1, capacity
        space -= length
    return packs


def test_row_over_capacity_is_a_bug_of_the_caller() -> None:
    for impossible in ([3, 9], [3, -1]):
        with pytest.raises(AssertionError, match="every row fits"):
            pack(np.array(impossible), 8)


def test_no_rows_are_no_packs() -> None:
    packs = pack(np.empty(0, np.int64), 8)
    assert (
        isinstance(packs, Packs)
        and len(packs) == 0
        and list(packs) == []
        and packs.sums(np.empty(0)).size == 0
    )
