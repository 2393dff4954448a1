"""Examples written as flat arrays are read back as they were, whatever their shape."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data import arrays, cache
from luthier.data.arrays import ArrayFile
from luthier.data.batch import Example, Segment, collate
from luthier.data.ledger import Ledger
from luthier.data.store import TableWriter, TokenDataset

WEIGHTS = st.sampled_from([0.0, 1.0]) | st.sampled_from([0.0, 0.25, 1.0, 3.0])


@st.composite
def examples(draw: st.DrawFn) -> list[Example]:
    result = []
    for row in range(draw(st.integers(0, 6))):
        segments: list[Segment] = []
        for index in range(draw(st.integers(1, 4))):
            ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5))
            weights = draw(st.lists(WEIGHTS, min_size=len(ids), max_size=len(ids)))
            parent = draw(st.integers(-1, index - 1))
            segments.append(Segment(np.array(ids, np.int32), np.array(weights, np.float32), parent))
        parents = [segment.parent for segment in segments]
        leaves = len(set(range(len(parents))) - set(parents))
        fact = st.integers(0, 9).map(float)
        facts = draw(st.dictionaries(st.sampled_from("abc"), fact | st.tuples(*[fact] * leaves), max_size=2))
        result.append(Example(tuple(segments), row=row // 2, columns=facts))
    return result


def written(folder: Path, rows: list[Example]) -> TokenDataset:
    """The examples in a new entry of a cache, read back."""
    entry = folder / f"entry{len(list(folder.iterdir()))}"
    facts: dict[str, Any] = {}
    with cache.new_entry(entry, facts) as inside:
        table = TableWriter(inside)
        for number, example in enumerate(rows):
            table.add(example, f"{number % 3}.jsonl", number + 1, content_hash=2**64 - 1 - number)
        facts |= {**table.close(), "ledger": Ledger().to_json()}
    found = cache.load(entry)
    assert found is not None
    return TokenDataset(*found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(examples())
def test_what_is_written_is_read(tmp_path: Path, rows: list[Example]) -> None:
    dataset = written(tmp_path, rows)
    assert len(dataset) == len(rows)
    assert dataset.lengths.tolist() == [len(example) for example in rows]
    assert dataset.num_tokens == sum(map(len, rows))
    weights = [segment.weights for example in rows for segment in example.segments]
    assert dataset.num_targets == sum(int(np.count_nonzero(one)) for one in weights)
    for index, example in enumerate(rows):
        again = dataset.example(index)
        assert again.row == example.row and len(again.segments) == len(example.segments)
        assert dataset.where(index) == f"{index % 3}.jsonl:{index + 1}"
        assert int(dataset.hashes[index]) == 2**64 - 1 - index
        for one, two in zip(example.segments, again.segments, strict=True):
            assert one.parent == two.parent and two.weights.dtype == np.float32
            np.testing.assert_array_equal(one.ids, two.ids)
            np.testing.assert_array_equal(one.weights, two.weights)
    if rows:
        before, after = collate(rows), collate([dataset.example(i) for i in range(len(rows))])
        assert before.columns.keys() == after.columns.keys()
        for name, values in before.columns.items():
            np.testing.assert_array_equal(values.numpy(), after.columns[name].numpy())
    assert dataset.holds(0) == bool(rows) and not dataset.holds(len(rows))


def test_weights_take_a_byte_until_one_is_a_fraction(tmp_path: Path) -> None:
    ids = np.arange(3, dtype=np.int32)
    plain = Example((Segment(ids, np.array([0, 1, 1], np.float32)),), row=0)
    halved = Example((Segment(ids, np.array([0, 0.5, 1], np.float32)),), row=1)
    whole, both = written(tmp_path, [plain]), written(tmp_path, [plain, halved])
    assert whole._arrays["weights"].dtype == np.uint8 and both._arrays["weights"].dtype == np.float32
    assert both.example(0).segments[0].weights.tolist() == [0, 1, 1]


@pytest.mark.parametrize("buffered", [1, 7, 1000])
def test_a_growing_array_is_a_plain_numpy_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffered: int
) -> None:
    monkeypatch.setattr(arrays, "_BUFFERED_VALUES", buffered)
    with ArrayFile(tmp_path / "a.npy", np.uint8) as file:
        parts = [np.arange(number, dtype=np.uint8) for number in range(9)]
        for part in parts:
            file.append(part)
        file = file.widened(np.float64)
        file.extend([0.5])
        file.close()
    expected = [*np.concatenate(parts).tolist(), 0.5]
    assert np.load(tmp_path / "a.npy", mmap_mode="r").tolist() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_the_last_mapped_values_outlive_their_files(tmp_path: Path) -> None:
    ids = np.arange(5, dtype=np.int32)
    dataset = written(tmp_path, [Example((Segment(ids, np.ones(5, np.float32)),), row=0)])
    for file in tmp_path.rglob("*.npy"):
        file.unlink()
    assert dataset.example(0).segments[0].ids.tolist() == ids.tolist()
