"""Rows held out by their content: stable when rows are added, equal for equal rows."""

import json
import random
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.holdout import content_hash, is_held_out, largest_held_out

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
records = st.dictionaries(st.text(max_size=4), values, max_size=4)


def shuffled(value: Any, rng: random.Random) -> Any:
    """The same value with the keys of its objects in another order."""
    if isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        return {key: shuffled(item, rng) for key, item in items}
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


@given(records, st.randoms(use_true_random=False))
def test_the_order_of_columns_does_not_matter(record: dict[str, Any], rng: random.Random) -> None:
    assert content_hash(shuffled(record, rng)) == content_hash(record)
    assert content_hash(json.loads(json.dumps(record))) == content_hash(record)


@settings(max_examples=30)
@given(
    st.lists(records, min_size=2, max_size=20, unique_by=lambda record: json.dumps(record, sort_keys=True))
)
def test_different_rows_have_different_hashes(rows: list[dict[str, Any]]) -> None:
    assert len({content_hash(row) for row in rows}) == len(rows)


def test_the_hash_is_the_same_for_ever() -> None:
    """Written down: a changed hash would move rows between training and evaluation in running projects."""
    assert content_hash({"b": [1, "é"], "a": None}) == 13219842922556169040
    assert content_hash({"a": b"\x00\xff", "d": date(2024, 2, 29), "t": "\ud800"}) == 7277025319163491700


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.2, 0.999])
def test_the_share_is_what_was_asked_for(fraction: float) -> None:
    held = [number for number in range(20_000) if is_held_out({"n": number}, fraction)]
    assert abs(len(held) / 20_000 - fraction) < 5 * (fraction * (1 - fraction) / 20_000) ** 0.5 + 1e-9
    more = min(1.0, fraction + 0.1)
    assert all(is_held_out({"n": number}, more) for number in held)


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(0, 12))
def test_the_rows_with_the_smallest_hashes(hashes: list[int], rows: int) -> None:
    limit = largest_held_out(hashes, rows)
    expected = sorted(hashes)[:rows]
    assert limit == (expected[-1] if expected else -1)
    assert largest_held_out(sorted(hashes, reverse=True), rows) == limit


@given(st.lists(st.integers(0, 2**64 - 1), min_size=30, max_size=60), st.integers(0, 2**64 - 1))
def test_a_new_row_pushes_out_at_most_one(hashes: list[int], new: int) -> None:
    before, after = largest_held_out(hashes, 10), largest_held_out([*hashes, new], 10)
    lost = {one for one in hashes if one <= before} - {one for one in hashes if one <= after}
    assert len(lost) <= 1
