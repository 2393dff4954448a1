"""Noise on embedded tokens: its distribution, and that nothing but seed, step, row and place decides it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.data.batch import Batch, Example, Segment, collate
from luthier.models.noise import EmbeddingNoise
from luthier.models.policy import Policy
from luthier.models.tripwire import choose_policy
from luthier.training.loop import Trainer
from method_rows import apart, judged_rows
from resuming import resumes_exactly
from tiny_models import tiny_llama
from training_parts import chat_rows, make_trainer


def text(length: int, row: int) -> Example:
    ids = np.arange(3, 3 + length, dtype=np.int32)
    return Example((Segment(ids, np.ones(length, np.float32)),), row=row)


def test_it_is_uniform_and_uncorrelated() -> None:
    size, length = 64, 400
    noise = EmbeddingNoise(10.0, 3, 5)
    drawn = noise(collate([text(length, 0)]), size) * (length * size) ** 0.5 / 10.0
    assert -1.0 <= float(drawn.min()) < -0.999 and 0.999 < float(drawn.max()) < 1.0
    spread = 4 / (size * length) ** 0.5
    assert abs(float(drawn.mean())) < spread / 3**0.5
    assert float((drawn**2).mean()) == pytest.approx(1 / 3, abs=spread * 0.3)
    counts = torch.histc(drawn, 16, -1, 1)
    assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 40  # chi², 15 degrees of freedom
    others = [
        drawn.roll(1, 0),
        drawn.roll(1, 1),
        EmbeddingNoise(10.0, 3, 6)(collate([text(length, 0)]), size),
        EmbeddingNoise(10.0, 4, 5)(collate([text(length, 0)]), size),
        noise(collate([text(length, 1)]), size),
    ]
    for other in others:
        both = torch.stack([drawn.flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(both)[0, 1])) < spread


def test_its_size_follows_the_documents_length() -> None:
    for length in (4, 64, 1000):
        drawn = EmbeddingNoise(5.0, 0)(collate([text(length, 2)]), 32)
        bound = 5.0 / (length * 32) ** 0.5
        assert 0.9 * bound < float(drawn.abs().max()) <= bound


def noisy(packing: bool | None = None, plain: bool = False) -> Policy:
    model = tiny_llama()
    policy = Policy(model, "plain") if plain else choose_policy(model, packing=packing).policy
    policy.noise = EmbeddingNoise(15.0, 7, 3)
    return policy.train()


def by_place(policy: Policy, batches: Sequence[Batch]) -> dict[tuple[int, int, int], float]:
    """Log-probabilities by row, sequence of the row and place in the sequence."""
    found: dict[tuple[int, int, int], float] = {}
    with torch.no_grad():
        for batch in batches:
            rows = batch.columns["row"].tolist()
            for logp, sequence in zip(policy(batch).tolist(), batch.sequence_N.tolist(), strict=True):
                if (row := rows[sequence]) >= 0:
                    index = sequence - rows.index(row)
                    place = sum((r, i) == (row, index) for r, i, _ in found)
                    found[row, index, place] = logp
    return found


def test_split_order_layout_and_a_shared_prompt_change_nothing() -> None:
    rows = judged_rows("pair", 5)
    whole = by_place(noisy(), [collate(rows)])
    silent = noisy()
    silent.noise = None
    assert max(abs(whole[key] - logp) for key, logp in by_place(silent, [collate(rows)]).items()) > 0.02
    batch = collate(rows[:2])
    padded = batch.padded(len(batch.tokens_T) + 9, len(batch.target_N), len(batch.parent_S) + 3)
    cuts: list[tuple[Policy, list[Batch]]] = [
        (noisy(), [collate([row]) for row in rows[::-1]]),
        (noisy(), [collate(rows[3:]), padded, collate(rows[2:3])]),
        (noisy(), [collate([apart(row) for row in rows])]),
        (noisy(packing=False), [collate(rows)]),
        (noisy(plain=True), [collate(rows)]),
    ]
    for policy, batches in cuts:
        found = by_place(policy, batches)
        assert found.keys() == whole.keys()
        assert max(abs(found[key] - whole[key]) for key in whole) < 1e-5


def test_there_is_none_outside_of_training_and_rows_share_nothing() -> None:
    policy, batch = noisy(), collate(chat_rows(3).examples)
    assert not policy.can_share
    with torch.no_grad():
        first, shaken = policy.eval()(batch), policy.train()(batch)
        policy.noise = None
        assert torch.equal(policy(batch), first) and not torch.equal(shaken, first)
    assert policy.can_share


def test_every_step_draws_anew_and_a_resumed_run_draws_the_same(tmp_path: Path) -> None:
    def made() -> Trainer:
        trainer = make_trainer(steps=6, lr=1e-2)
        trainer.policy.noise = EmbeddingNoise(15.0, 1)
        return trainer

    resumes_exactly(made, tmp_path / "run", 4)
    batch, noise = collate([text(9, 0)]), EmbeddingNoise(5.0, 0, 1)
    assert not torch.equal(noise(batch, 8), replace(noise, step=2)(batch, 8))
