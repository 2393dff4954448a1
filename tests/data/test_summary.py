"""Figures of a data set: they are counted, not estimated, and advice holds what it promises."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_samples import byte_level, sentence_piece
from luthier.data.advice import advice
from luthier.data.batch import Example, Segment
from luthier.data.content import Answers, Pieces, Prompt, Steps, Text, TokenIds
from luthier.data.draft import EncodedRow, EncodeOptions, too_long
from luthier.data.pack import pack
from luthier.data.pipeline import PreparedRow
from luthier.data.shown import outline, token_pieces
from luthier.data.sources import Row
from luthier.data.summary import Lengths, Summary

ANSWER = {"role": "assistant", "content": "a"}
USER = {"role": "user", "content": "q"}


def row(number: int, set: int = 0) -> Row:
    return Row(number, f"{set}.jsonl", number + 1, {"text": "x"}, None, set)


def kept(number: int, length: int, learned: int, set: int = 0, text: str = "") -> PreparedRow:
    weights = (np.arange(length) < learned).astype(np.float32)
    example = Example((Segment(np.zeros(length, np.int32), weights),))
    return PreparedRow(row(number, set), "kept", None, Text(text or str(number)), EncodedRow((example,), ""))


def dropped(number: int, length: int, max_length: int, set: int = 0) -> PreparedRow:
    return PreparedRow(row(number, set), "dropped", too_long(length, EncodeOptions(max_length)))


LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 300), st.integers(300, 900))
def test_figures_are_those_of_the_rows(lengths: list[int], max_length: int, capacity: int) -> None:
    summary = Summary(["0.jsonl"])
    for number, length in enumerate(lengths):
        fits = length <= max_length
        summary.add(kept(number, length, length // 3) if fits else dropped(number, length, max_length))
    short = [length for length in lengths if length <= max_length]
    assert summary.ledger.read == len(lengths) and summary.ledger.kept == len(short)
    assert summary.num_tokens == sum(short) and summary.num_learned == sum(n // 3 for n in short)
    assert summary.lengths is not None and summary.lengths.tokens.tolist() == sorted(lengths)
    packed = summary.packed(capacity)
    assert (packed is None) == (not short)
    if packed is not None:
        assert packed.micro_batches == len(pack(np.array(short), capacity))
        assert packed.fill == sum(short) / (packed.micro_batches * capacity)
    said = " ".join(
        advice(
            summary,
            max_length=max_length,
            capacity=capacity,
            max_drop_fraction=1.0,
            overlong=None,
            cleans_duplicates=False,
        )
    )
    over = sum(length > max_length for length in lengths)
    assert (f"{over / len(lengths):.1%} of the rows are longer" in said) == (over > 0)
    if found := re.search(r"data\.max_length=(\d+)", said):
        assert sum(length <= int(found[1]) for length in lengths) >= 0.99 * len(lengths)


@given(LENGTHS, st.floats(0, 100))
def test_percentiles_and_bins(lengths: list[int], share: float) -> None:
    one = Lengths(np.sort(np.array(lengths)))
    value = one.percentile(share)
    assert (
        value in lengths and sum(length <= value for length in lengths) >= share / 100 * len(lengths) - 1e-9
    )
    assert one.fitting(value) == sum(length <= value for length in lengths) / len(lengths)
    edges, counts = one.bins()
    assert edges == sorted(set(edges)) and len(edges) == len(counts) + 1
    assert counts == [sum(low <= n < high for n in lengths) for low, high in itertools.pairwise(edges)]
    assert sum(counts) == len(lengths)


@given(st.integers(0, 9), st.lists(st.integers(0, 2), max_size=30), st.sets(st.integers(0, 29), max_size=3))
def test_samples_are_the_first_of_every_set_and_those_asked_for(
    num: int, sets: list[int], asked: set[int]
) -> None:
    summary = Summary(["a", "b", "c"], num, asked)
    for number, which in enumerate(sets):
        summary.add(kept(number, 3, 1, which) if number % 4 else dropped(number, 9, 3, which))
    shown = [one.row.number for one in summary.samples]
    assert shown == sorted(set(shown)) and asked & set(range(len(sets))) <= set(shown)
    first = [number for number in shown if number not in asked]
    assert len(first) <= num and all(number % 4 for number in first)
    assert [own.read for own in summary.by_set] == [sets.count(which) for which in range(3)]


def test_duplicates_are_counted_and_stay() -> None:
    summary = Summary(["a"], find_duplicates=True)
    for number, text in enumerate(["x", "y", "x", " x "]):
        summary.add(kept(number, 3, 1, text=text))
    assert summary.num_duplicates == 2 and summary.ledger.kept == 4
    assert summary.duplicates[0] == ("0.jsonl:3", "the row says the same as '0.jsonl:1'")


def said(summary: Summary, **changes: Any) -> list[str]:
    options: dict[str, Any] = {
        "max_length": 100,
        "capacity": 100,
        "max_drop_fraction": 0.01,
        "overlong": None,
    }
    return advice(summary, **{**options, "cleans_duplicates": False, **changes})


def test_each_advice_has_its_reason() -> None:
    well = Summary(["a"])
    for number in range(40):
        well.add(kept(number, 100, 50))
    assert said(well) == []
    gaps, little, faulty = Summary(["a"]), Summary(["a"]), Summary(["a"])
    for number in range(40):
        gaps.add(kept(number, 60, 50))
        little.add(kept(number, 100, 1))
        faulty.add(kept(number, 100, 50))
    faulty.add(dropped(41, 150, 100))
    assert "train.tokens_per_micro_batch=200 packs better" in " ".join(said(gaps))
    assert "only 1.0% of the tokens are learned" in " ".join(said(little))
    stop, longer = said(faulty)
    assert stop.startswith("training would stop: 2.4% of the rows cannot be used")
    assert "data.max_length=192 with train.tokens_per_micro_batch=192 keeps 99 %" in longer
    assert said(faulty, max_drop_fraction=0.5)[0] == longer
    twice = Summary(["a"], find_duplicates=True)
    for number in range(40):
        twice.add(kept(number, 100, 50, text=str(max(number, 1))))
    assert said(twice) == [
        "1 row says the same as an earlier one; data.clean.exact_duplicates=true leaves them out"
    ]
    assert said(twice, cleans_duplicates=True) == []


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40) | st.text(alphabet="a 😀你é\n<>|", max_size=20), st.booleans(), st.data())
def test_shown_tokens_are_the_text_and_the_ids(text: str, words: bool, data: st.DataObject) -> None:
    tokenizer: Any = (sentence_piece() if words else byte_level()).backend_tokenizer
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    weights = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(ids), max_size=len(ids)))
    )
    pieces = token_pieces(tokenizer, ids, weights.astype(np.float32))
    assert [number for piece in pieces for number in piece.ids] == ids.tolist()
    start = 0
    for piece in pieces:  # nothing learned is shown as not learned, or the other way round
        own = weights[start : start + len(piece.ids)] > 0
        assert (own == (piece.weight > 0)).all()
        start += len(piece.ids)
    if (weights > 0).all() or not weights.any():
        assert "".join(piece.text for piece in pieces) == tokenizer.decode(
            ids.tolist(), skip_special_tokens=False
        )
    cut = token_pieces(tokenizer, ids, weights.astype(np.float32), most=3)
    assert [number for piece in cut for number in piece.ids] == ids.tolist()[:3]


def test_outlines_name_every_part() -> None:
    pair = Answers(
        (USER,), ((ANSWER,), ({"role": "assistant", "content": "b"},)), "pair", {"score": (2.0, 1.0)}
    )
    assert outline(pair) == [
        ("user", "q"),
        ("assistant [answer 1: score 2]", "a"),
        ("assistant [answer 2: score 1]", "b"),
    ]
    assert outline(Pieces((("x", False), ("y", True)))) == [("not learned", "x"), ("learned", "y")]
    assert outline(Steps((USER,), ("one",), (0.5,))) == [("user", "q"), ("step 1, label 0.5", "one")]
    assert outline(Prompt((USER,))) == [("user", "q")]
    assert outline(Text("t")) == [("text", "t")]
    assert outline(TokenIds(np.array([3, 1], np.int32), np.ones(2, np.float32))) == [("token ids", "3 1")]


def test_the_lengths_of_long_rows_are_read_from_their_reasons(tmp_path: Path) -> None:
    """The words of these reasons are another file's: if they change, lengths must not silently go missing."""
    summary = Summary(["a"])
    summary.add(dropped(0, 123_456, 7))
    assert summary.lengths is not None and summary.lengths.longest == 123_456
