"""Rows joined into blocks: nothing is lost, nothing is learned twice, and a block is one document."""

from itertools import chain
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.config.data_section import SetSection
from luthier.data.batch import Example, Segment, collate
from luthier.data.encode import EncodeOptions
from luthier.data.join import Joiner, Origin
from luthier.data.pipeline import Plan, Recipe
from luthier.data.prepare import prepare_plan
from stream_parts import TOKENIZER


def joined(lengths: list[int], block: int) -> tuple[list[Example], list[Origin]]:
    joiner, blocks, first = Joiner(block), [], 0
    for row, length in enumerate(lengths):
        ids = np.arange(first, first + length, dtype=np.int32)
        example = Example((Segment(ids, np.ones(length, np.float32)),), row)
        blocks += joiner.add(example, Origin(row, "a.txt", row + 1))
        first += length
    blocks += joiner.rest()
    return [block for block, _ in blocks], [origin for _, origin in blocks]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(2, 17))
def test_every_token_but_the_first_is_predicted_once_from_the_one_before_it(
    lengths: list[int], block: int
) -> None:
    blocks, origins = joined(lengths, block)
    if sum(lengths) < 2:
        assert not blocks
        return
    batch = collate(blocks)
    assert batch.target_N.tolist() == list(range(1, sum(lengths)))
    assert batch.tokens_T[batch.source_N].tolist() == list(range(sum(lengths) - 1))
    assert all(len(one) == block for one in blocks[:-1]) and 2 <= len(blocks[-1]) <= block
    assert all(len(one.segments) == 1 for one in blocks)  # one document: positions run on
    ends = np.cumsum(lengths)
    for one, origin in zip(blocks, origins, strict=True):  # a block begins in the row that it is known by
        first = int(one.segments[0].ids[0])
        assert origin.row in (
            np.searchsorted(ends, first, "right"),
            np.searchsorted(ends, first + 1, "right"),
        )


def test_what_is_not_learned_stays_so() -> None:
    weights = np.array([0, 0, 1, 1, 0], np.float32)
    joiner = Joiner(4)
    rows = [Example((Segment(np.arange(5, dtype=np.int32) + 5 * n, weights),), n) for n in range(3)]
    blocks = list(chain(*(joiner.add(row, Origin(n, "a", n)) for n, row in enumerate(rows)), joiner.rest()))
    batch = collate([block for block, _ in blocks])
    assert sorted(batch.target_N.tolist()) == [2, 3, 7, 8, 12, 13]
    assert weights.tolist() == [0, 0, 1, 1, 0]  # what was given is as it was


def test_texts_of_a_file_become_blocks_and_the_account_has_their_tokens(tmp_path: Path) -> None:
    for name, number in {"a.txt": 30, "b.txt": 10}.items():
        (tmp_path / name).write_text("\n".join(f"{name} line {i} " + "word " * i for i in range(number)))
    sets = tuple(SetSection(path=str(tmp_path / name)) for name in ("a.txt", "b.txt"))
    plan = Plan(sets, Recipe(TOKENIZER, EncodeOptions(16, in_blocks=True), None, "no template"))
    blocks, alone = prepare_plan(plan), prepare_plan(plan.on_their_own())
    assert blocks.ledger.read == blocks.ledger.kept == alone.ledger.kept == 40
    assert set(blocks.lengths[:-1].tolist()) == {16} and alone.lengths.min() < 16
    tokens = blocks.ledger.tokens
    assert sum(tokens.values()) == blocks.num_tokens - (
        len(blocks) - 1
    )  # but for what each block starts with
    assert tokens[str(tmp_path / "a.txt")] > tokens[str(tmp_path / "b.txt")] > 0
    assert "tokens by data set: a.txt" in blocks.ledger.summary()
    assert all(blocks.where(i).startswith(str(tmp_path)) for i in range(len(blocks)))
