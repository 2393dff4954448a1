"""KTO's rows with the answer of another row: each the next one that a micro-batch has room for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.batch import Example, Segment
from luthier.errors import ConfigError
from luthier.methods._mismatched import Mismatched
from training_parts import Rows

sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=2, max_size=12)


def rows(of: list[tuple[int, int]]) -> Rows:
    """Rows of a prompt and an answer of these lengths; an answer's tokens are its row's number."""
    return Rows([_row(number, *lengths) for number, lengths in enumerate(of)])


def _row(number: int, prompt: int, answer: int) -> Example:
    segments = (
        Segment(np.zeros(prompt, np.int32), np.zeros(prompt, np.float32)),
        Segment(np.full(answer, number, np.int32), np.ones(answer, np.float32), parent=0),
    )
    return Example(segments, {"row": float(number), "label": 1.0})


@given(sizes, st.integers(2, 80))
def test_the_partner_is_the_next_row_whose_answer_fits(of: list[tuple[int, int]], most: int) -> None:
    def fits(row: int, other: int) -> bool:
        return sum(of[row]) + of[other][1] <= most

    others = [[(row + k) % len(of) for k in range(1, len(of))] for row in range(len(of))]
    wanted = [next((o for o in found if fits(row, o)), None) for row, found in enumerate(others)]
    if None in wanted:
        with pytest.raises(ConfigError, match=r"train\.tokens_per_micro_batch"):
            Mismatched(rows(of), most)
        return
    made = Mismatched(rows(of), most)
    assert [int(made.example(row).segments[-1].ids[0]) for row in range(len(of))] == wanted
    assert made.lengths.tolist() == [
        sum(len(one.ids) for one in made.example(row).segments) for row in range(len(of))
    ]
    assert made.lengths.max() <= most


@given(sizes)
def test_with_room_for_all_it_is_the_next_row(of: list[tuple[int, int]]) -> None:
    made = Mismatched(rows(of))
    assert [int(made.example(row).segments[-1].ids[0]) for row in range(len(of))] == [
        (row + 1) % len(of) for row in range(len(of))
    ]
