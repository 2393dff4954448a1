"""Micro-batches of one shape: nothing that a row sees or counts for changes, and every epoch fits."""

import dataclasses
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.test_batch import examples
from luthier.data.batch import Batch, Example, Segment, collate
from luthier.data.loader import StepSource
from luthier.methods.sft import SFT
from training_parts import Rows, chat_rows, make_trainer


def shapes(batch: Batch) -> dict[str, torch.Size]:
    named = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return {n: t.shape for n, t in (named | batch.columns).items() if isinstance(t, torch.Tensor)}


@given(examples(), st.integers(0, 9), st.integers(0, 4), st.integers(1, 4))
def test_padding_is_documents_of_their_own_that_count_for_nothing(
    rows: list[Example], tokens: int, predictions: int, segments: int
) -> None:
    batch = collate(rows)
    size = batch.num_tokens, len(batch.target_N), len(batch.parent_S)
    padded = batch.padded(size[0] + tokens, size[1] + predictions, size[2] + segments)
    assert len(padded.tokens_T) == len(padded.positions_T) == int(padded.starts_S1[-1]) == size[0] + tokens
    assert len(padded.parent_S) == len(padded.starts_S1) - 1 == size[2] + segments
    assert padded.num_tokens == batch.num_tokens and SFT().count(padded) == SFT().count(batch)
    assert len(padded.paths()) == padded.num_sequences == batch.num_sequences + segments
    for name in ("tokens_T", "positions_T", "starts_S1", "parent_S", "source_N", "target_N", "sequence_N"):
        before, after = getattr(batch, name), getattr(padded, name)
        assert torch.equal(after[: len(before)], before) and after.dtype == before.dtype
    assert padded.columns["row"][batch.num_sequences :].eq(-1).all()
    assert padded.weight_N[size[1] :].eq(0).all() and padded.source_N.lt(len(padded.tokens_T)).all()
    lengths = padded.starts_S1.diff()[size[2] :]
    assert int(lengths.max() - lengths.min()) <= 1  # so that none is long
    for path in padded.paths():
        index = [i for s in path for i in range(int(padded.starts_S1[s]), int(padded.starts_S1[s + 1]))]
        assert padded.positions_T[index].tolist() == list(range(len(index)))


@given(st.integers(1, 50), st.integers(30, 90), st.integers(0, 3))
def test_every_epoch_has_one_shape_with_all_its_rows(num_rows: int, micro: int, seed: int) -> None:
    make: dict[str, Any] = {"tokens_per_step": micro, "micro_tokens": micro, "seed": seed}
    fixed = StepSource(chat_rows(num_rows, seed), fixed_shape=True, **make)
    plain = StepSource(chat_rows(num_rows, seed), **make)
    assert fixed.shape is not None
    found = []
    for step in range(3 * plain.steps_per_epoch):
        for one, two in zip(fixed.step(step), plain.step(step), strict=True):
            found.append(shapes(one))
            assert one.num_tokens == two.num_tokens and SFT().count(one) == SFT().count(two)
            assert one.columns["row"][: two.num_sequences].equal(two.columns["row"])
            assert int(one.starts_S1.diff().max()) <= fixed.shape.longest == one.longest
    assert all(shape == found[0] for shape in found)
    assert fixed.shape.num_tokens <= -(-micro // 16) * 16


def test_the_shape_is_no_larger_than_the_rows_need() -> None:
    segment = Segment(np.arange(8, dtype=np.int32), np.array([1, 0, 0, 0, 0, 1, 1, 1], np.float32))
    source = StepSource(
        Rows([Example((segment,), row=i) for i in range(6)]),
        tokens_per_step=16,
        micro_tokens=16,
        fixed_shape=True,
    )
    assert dataclasses.astuple(source.shape) == (16, 6, 3, 8)  # pyright: ignore  # a root's first token is not learned


def test_training_on_padded_micro_batches_is_the_same() -> None:
    for lora in (True, False):
        plain, fixed = make_trainer(lora=lora), make_trainer(lora=lora)
        fixed.source = StepSource(
            fixed.source.dataset, tokens_per_step=128, micro_tokens=64, fixed_shape=True
        )
        for step in range(6):
            one, two = plain.step(plain.source.step(step)).values, fixed.step(fixed.source.step(step)).values
            for name in ("loss", "grad_norm", "tokens"):
                assert abs(one[name] - two[name]) <= 2e-6 * abs(one[name]), name
        for one, two in zip(plain.parameters, fixed.parameters, strict=True):
            assert float((one - two).norm()) <= 1e-5 * float(one.norm()) + 1e-7
