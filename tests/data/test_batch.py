"""The forest batch: predictions point to the right tokens, in every layout of segments."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.batch import Example, Segment, collate


@st.composite
def examples(draw: st.DrawFn) -> list[Example]:
    result = []
    for row in range(draw(st.integers(1, 4))):
        segments: list[Segment] = []
        for index in range(draw(st.integers(1, 5))):
            length = draw(st.integers(1, 5))
            ids = np.array(draw(st.lists(st.integers(0, 50), min_size=length, max_size=length)), np.int32)
            weights = np.array(
                draw(st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=length, max_size=length))
            )
            segments.append(Segment(ids, weights.astype(np.float32), draw(st.integers(-1, index - 1))))
        result.append(Example(tuple(segments), row=row, columns={"label": float(row % 2)}))
    return result


@given(examples())
def test_predictions_are_exactly_the_weighted_tokens_seen_from_their_predecessor(rows: list[Example]) -> None:
    batch = collate(rows)
    tokens, starts = batch.tokens_T.tolist(), batch.starts_S1.tolist()
    expected, segment = [], 0
    for example in rows:
        base = segment
        for part in example.segments:
            start = starts[segment]
            for i, weight in enumerate(part.weights):
                if weight and i > 0:
                    expected.append((start + i - 1, int(part.ids[i]), float(weight)))
                elif weight and part.parent >= 0:
                    expected.append((starts[base + part.parent + 1] - 1, int(part.ids[i]), float(weight)))
            segment += 1
    found = zip(batch.source_N.tolist(), batch.target_N.tolist(), batch.weight_N.tolist(), strict=True)
    assert list(found) == expected
    assert tokens == [int(i) for e in rows for s in e.segments for i in s.ids]


@given(examples())
def test_positions_count_from_the_root_and_every_prediction_lies_on_its_path(rows: list[Example]) -> None:
    batch = collate(rows)
    starts, paths = batch.starts_S1.tolist(), batch.paths()
    assert len(paths) == batch.num_sequences
    for path in paths:
        index = [i for s in path for i in range(starts[s], starts[s + 1])]
        assert batch.positions_T[index].tolist() == list(range(len(index)))
    for source, sequence in zip(batch.source_N.tolist(), batch.sequence_N.tolist(), strict=True):
        assert any(starts[s] <= source < starts[s + 1] for s in paths[sequence])
    rows_of_sequences = batch.columns["row"].tolist()
    assert rows_of_sequences == sorted(rows_of_sequences)
    assert batch.columns["label"].tolist() == [row % 2 for row in rows_of_sequences]
