"""Which rows a step holds: every row once an epoch, whatever the ranks, from seed and step alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.balance import CostModel
from luthier.data.batch import Batch
from luthier.data.loader import StepSource, Subset, hold_out, in_order
from training_parts import chat_rows


def rows_of(batches: list[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.columns["row"]]


@given(st.integers(1, 60), st.integers(30, 90), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_holds_every_row_once(num_rows: int, micro: int, packs: int, epoch: int) -> None:
    source = StepSource(chat_rows(num_rows), tokens_per_step=micro * packs, micro_tokens=micro, seed=3)
    steps = [source.step(epoch * source.steps_per_epoch + i) for i in range(source.steps_per_epoch)]
    assert sorted(rows_of([batch for step in steps for batch in step])) == list(range(num_rows))
    assert all(len(step) <= packs and all(b.num_tokens <= micro for b in step) for step in steps)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_each_step_without_changing_it(world: int) -> None:
    make = {"tokens_per_step": 128, "micro_tokens": 32}
    alone = StepSource(chat_rows(40), **make)
    ranks = [StepSource(chat_rows(40), rank=rank, world=world, **make) for rank in range(world)]
    for step in range(2 * alone.steps_per_epoch):
        together = [row for source in ranks for row in rows_of(source.step(step))]
        assert sorted(together) == sorted(rows_of(alone.step(step)))


def test_a_step_is_a_function_of_seed_and_step() -> None:
    make = {"tokens_per_step": 96, "micro_tokens": 32}
    one, two = StepSource(chat_rows(40), **make), StepSource(chat_rows(40), **make)
    later = rows_of(one.step(one.steps_per_epoch + 1))
    for step in range(5):
        two.step(step)
    assert rows_of(two.step(two.steps_per_epoch + 1)) == later
    other_seed = StepSource(chat_rows(40), seed=1, **make)
    assert rows_of(other_seed.step(0)) != rows_of(one.step(0))
    first, second = (
        [rows_of(one.step(e * one.steps_per_epoch + s)) for s in range(one.steps_per_epoch)] for e in (0, 1)
    )
    assert first != second


def test_total_steps() -> None:
    source = StepSource(chat_rows(40), tokens_per_step=96, micro_tokens=32)
    assert source.total_steps(2.0, None) == 2 * source.steps_per_epoch
    assert source.total_steps(2.0, 7) == 7 and source.total_steps(1e-6, None) == 1


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_held_out_rows_and_the_rest_are_all_rows(held: list[bool]) -> None:
    mask = np.array(held)
    kept, out = hold_out(chat_rows(len(held)), mask)
    assert sorted([*kept.rows, *out.rows]) == list(range(len(held)))
    assert out.rows.tolist() == [number for number, one in enumerate(held) if one]
    assert len(kept) == len(kept.lengths) and kept.locate(0) == "rows.jsonl:1"


def test_a_subset_is_evaluated_alone() -> None:
    assert rows_of(list(in_order(Subset(chat_rows(20), np.array([3, 5])), 64))) == [3, 5]


def test_ranks_get_even_shares_by_predicted_cost() -> None:
    make = {"tokens_per_step": 8 * 64, "micro_tokens": 64, "cost": CostModel(0.5)}
    rows = chat_rows(300, longest=60)
    sources = [StepSource(rows, rank=rank, world=2, **make) for rank in range(2)]
    for step in range(sources[0].steps_per_epoch - 1):
        shares = [source.step(step) for source in sources]
        assert [len(share) for share in shares] == [4, 4]
        costs = [[cost_of(batch) for batch in share] for share in shares]
        spread = max(map(max, costs)) - min(map(min, costs))
        assert abs(sum(costs[0]) - sum(costs[1])) <= spread + 1e-6


def cost_of(batch: Batch) -> float:
    return float(CostModel(0.5).of_rows(np.diff(batch.starts_S1.numpy())).sum())


def test_evaluation_sees_every_row_once_over_all_ranks() -> None:
    seen = [row for rank in range(3) for row in rows_of(list(in_order(chat_rows(25), 48, rank, 3)))]
    assert sorted(seen) == list(range(25))
