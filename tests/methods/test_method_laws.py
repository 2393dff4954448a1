"""Laws 1, 2, 3 and 5 for every method and variant: no layout, split, order, rank or interruption changes a step."""

from pathlib import Path

import pytest
import torch

from luthier.data.batch import collate
from luthier.data.sharing import share_prefixes
from luthier.runs.folder import RunFolder
from luthier.training.checkpoint import load_checkpoint, save_checkpoint
from luthier.training.loop import Trainer
from method_rows import all_variants, apart, variant_id
from method_steps import Step, Variant, policy_of, rows_of, step_of, teacher_of
from thread_ranks import on_ranks
from training_parts import make_trainer, trained_weights

every_variant = pytest.mark.parametrize("variant", all_variants(), ids=variant_id)


def check_same(found: Step, expected: Step) -> None:
    (values, gradients), (true_values, true_gradients) = found, expected
    assert values == pytest.approx(true_values, rel=2e-4, abs=2e-5)
    assert max(float(true.norm()) for true in true_gradients) > 1e-4
    for gradient, true in zip(gradients, true_gradients, strict=True):
        assert float((gradient - true).norm()) <= 2e-4 * float(true.norm()) + 1e-7


@every_variant
def test_split_order_and_layout_change_nothing(variant: Variant) -> None:
    rows = rows_of(variant)
    whole = step_of(variant, [collate(rows)])
    check_same(step_of(variant, [collate([row]) for row in rows[::-1]]), whole)
    shuffled = [rows[i] for i in (3, 0, 5, 1, 4, 2)]
    check_same(step_of(variant, [collate(shuffled[:4]), share_prefixes(collate(shuffled[4:]))]), whole)
    batch = collate(rows[2:])
    padded = batch.padded(len(batch.tokens_T) + 7, len(batch.target_N) + 3, len(batch.parent_S) + 3)
    check_same(step_of(variant, [padded, collate(rows[:2])]), whole)


@every_variant
def test_a_shared_prompt_is_the_same_as_one_for_each_answer(variant: Variant) -> None:
    rows = rows_of(variant)
    separate = [apart(row) for row in rows]
    assert sum(map(len, separate)) > sum(map(len, rows)) or separate == rows
    check_same(step_of(variant, [collate(separate)]), step_of(variant, [collate(rows)]))


@every_variant
def test_three_ranks_one_of_them_idle_take_the_same_step_as_one(variant: Variant) -> None:
    rows = rows_of(variant)
    shares = [[collate(rows[:1]), collate(rows[1:3])], [], [collate(rows[3:])]]
    for rank in range(3):
        (
            policy_of(rank, variant),
            teacher_of(rank, variant),
        )  # drawn from the global generator, so not by threads
    whole = step_of(variant, [collate(rows)])
    for found in on_ranks(3, lambda cluster: step_of(variant, shares[cluster.rank], cluster)):
        check_same(found, whole)


@every_variant
def test_a_resumed_run_is_the_uninterrupted_one(variant: Variant, tmp_path: Path) -> None:
    name, options = variant

    def made() -> Trainer:
        return make_trainer(method=name, options=options, steps=6, lr=3e-2)

    def go(trainer: Trainer, steps: range) -> list[dict[str, float]]:
        reports = [trainer.step(trainer.source.step(step)).values for step in steps]
        return [{n: v for n, v in r.items() if n != "tokens_per_second"} for r in reports]

    straight, resumed = made(), made()
    go(straight, range(2))
    path = save_checkpoint(straight, RunFolder(tmp_path / "run"), "tiny")  # and goes on
    assert path is not None
    load_checkpoint(resumed, path)
    assert go(resumed, range(2, 4)) == go(straight, range(2, 4))
    for weight, other in zip(
        trained_weights(straight).values(), trained_weights(resumed).values(), strict=True
    ):
        assert torch.equal(weight, other)
