"""Numbers that are known beforehand of each prediction of a dataset: made once, looked up in every epoch."""

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from luthier.data.batch import Example
from luthier.data.loader import Dataset


class WithGiven:
    """A dataset whose rows bring along what is known of their predictions.

    Args:
        dataset: the rows.
        name: under which it is found in `Batch.given`.
        values: of all predictions, row after row, [P] or [P, …].
        ends: where each row's end in `values`.
    """

    def __init__(self, dataset: Dataset, name: str, values: NDArray[np.float32], ends: NDArray[np.int64]):
        assert len(ends) == len(dataset.lengths) and (not len(ends) or ends[-1] == len(values)), (
            "one for each"
        )
        self.dataset, self.name, self.values, self.ends = dataset, name, values, ends

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return self.dataset.lengths

    def example(self, index: int) -> Example:
        """One row, with what is known of it."""
        example = self.dataset.example(index)
        start = int(self.ends[index - 1]) if index else 0
        known = np.array(self.values[start : int(self.ends[index])])
        return replace(example, given={**example.given, self.name: known})

    def locate(self, row: int) -> str:
        """As the dataset says."""
        return self.dataset.locate(row)


def survey(dataset: Dataset) -> tuple[str, NDArray[np.int64]]:
    """A name that only the same predictions in the same order have, and where each row's end, counted from the first.

    What else a row holds does not count: its label, and how much a prediction weighs. Reads every row once.
    """
    key, counts = hashlib.sha256(), np.zeros(len(dataset.lengths), np.int64)
    for index in range(len(counts)):
        example = dataset.example(index)
        counts[index] = example.num_predictions
        for segment in example.segments:
            key.update(np.array([len(segment.ids), segment.parent], "<i8").tobytes())
            key.update(np.ascontiguousarray(segment.ids, "<i4").tobytes())
            key.update(np.packbits(np.asarray(segment.weights) != 0).tobytes())
        key.update(b"row")
    return key.hexdigest(), counts.cumsum()
