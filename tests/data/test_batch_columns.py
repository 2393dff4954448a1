"""Facts of rows reach the sequences they belong to."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.batch import Example, Segment, collate

NAMES = ("label", "score", "margin")


def example(row: int, answers: int, columns: dict[str, float | tuple[float, ...]]) -> Example:
    """A prompt with so many answers."""
    one = np.ones(2, np.float32)
    ids = np.arange(2, dtype=np.int32)
    answers_of = [Segment(ids, one, parent=0) for _ in range(answers)]
    return Example((Segment(ids, 0 * one), *answers_of), row=row, columns=columns)


@st.composite
def rows(draw: st.DrawFn) -> list[Example]:
    result = []
    for row in range(draw(st.integers(1, 5))):
        answers = draw(st.integers(1, 3))
        each = st.tuples(*[st.integers(0, 9).map(float)] * answers)
        columns = draw(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 9).map(float) | each))
        result.append(example(row, answers, columns))
    return result


@given(rows())
def test_every_sequence_has_its_own_facts(given_rows: list[Example]) -> None:
    batch = collate(given_rows)
    names = {name for one in given_rows for name in one.columns}
    assert set(batch.columns) == names | {"row"}
    expected: dict[str, list[float]] = {name: [] for name in batch.columns}
    for one in given_rows:
        for answer in range(len(one.segments) - 1):
            for name in expected:
                fact = one.row if name == "row" else one.columns.get(name, math.nan)
                expected[name].append(fact[answer] if isinstance(fact, tuple) else fact)
    for name, values in expected.items():
        np.testing.assert_array_equal(batch.columns[name].numpy(), np.array(values, np.float32))


def test_facts_that_do_not_fit_the_answers_are_our_fault() -> None:
    with pytest.raises(AssertionError, match="label has a value for each of the row's 2 sequences"):
        collate([example(0, 2, {"label": (1.0,)})])
