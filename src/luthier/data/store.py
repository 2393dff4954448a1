"""Examples as a few flat arrays, in memory or mapped from disk, and the account of the rows they come from.

Tokens of all segments lie end to end, then their weights, in one byte where all of them are 0 or 1. An example
is a run of segments; a row may have several examples. Facts that a method needs are kept for each sequence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.arrays import ArrayFile
from luthier.data.batch import Example, Segment
from luthier.data.ledger import Ledger

Arrays = dict[str, NDArray[Any]]
TYPES = {
    "ids": np.int32,
    "weights": np.uint8,
    "token_ends": np.int64,  # of each segment
    "parents": np.int32,
    "segment_ends": np.int64,  # of each example
    "sequence_ends": np.int64,
    "rows": np.int64,
    "lines": np.int64,
    "files": np.int32,
    "hashes": np.uint64,
}


class TableWriter:
    """Writes examples into a folder, one after another."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._arrays = {name: ArrayFile(folder / f"{name}.npy", dtype) for name, dtype in TYPES.items()}
        self._columns: dict[str, ArrayFile] = {}
        self._files: dict[str, int] = {}
        self._num_segments = self._num_sequences = 0

    def add(self, example: Example, file: str, line: int, content_hash: int = 0) -> None:
        """One example of a row, and where the row was read."""
        for segment in example.segments:
            self._add_weights(segment.weights)
            self._arrays["ids"].append(segment.ids)
            self._arrays["token_ends"].push(self._arrays["ids"].size)
            self._arrays["parents"].push(segment.parent)
        parents = [segment.parent for segment in example.segments]
        num_sequences = len(set(range(len(parents))) - set(parents))
        self._add_columns(example, num_sequences)
        self._num_segments += len(parents)
        self._num_sequences += num_sequences
        number = self._files.setdefault(file, len(self._files))
        own = {
            "segment_ends": self._num_segments,
            "sequence_ends": self._num_sequences,
            "rows": example.row,
            "lines": line,
            "files": number,
            "hashes": content_hash,
        }
        for name, value in own.items():
            self._arrays[name].push(value)

    def close(self) -> dict[str, Any]:
        """Completes the files; returns the facts that `TokenDataset` needs besides them, as JSON values."""
        for array in (*self._arrays.values(), *self._columns.values()):
            array.close()
        return {"files": list(self._files), "columns": list(self._columns)}

    def abandon(self) -> None:
        """Gives the files up."""
        for array in (*self._arrays.values(), *self._columns.values()):
            array.__exit__()

    def _add_weights(self, weights: NDArray[np.float32]) -> None:
        narrow = self._arrays["weights"].dtype == np.uint8
        if narrow and not np.array_equal(weights, weights.astype(np.bool_)):
            self._arrays["weights"] = self._arrays["weights"].widened(np.float32)
        self._arrays["weights"].append(weights)

    def _add_columns(self, example: Example, num_sequences: int) -> None:
        for name in example.columns.keys() - self._columns.keys():
            column = ArrayFile(self.folder / f"column{len(self._columns)}.npy", np.float64)
            column.append(np.full(self._num_sequences, np.nan))
            self._columns[name] = column
        for name, column in self._columns.items():
            value = example.columns.get(name, np.nan)
            column.extend(value if isinstance(value, tuple) else [value] * num_sequences)


class TokenDataset:
    """The examples that can be learned from, as flat arrays, and the account of all rows that were read.

    Args:
        arrays: what `TableWriter` has written.
        facts: what its `close` returned, and the ledger.
        notes: what a person should be told once.
    """

    def __init__(self, arrays: Arrays, facts: dict[str, Any], notes: Sequence[str] = ()):
        self._arrays, self._files = arrays, facts["files"]
        self._columns = {name: arrays[f"column{i}"] for i, name in enumerate(facts["columns"])}
        self.ledger = Ledger.from_json(facts["ledger"])
        self.notes = tuple(notes)
        ends = arrays["token_ends"][arrays["segment_ends"] - 1] if len(self) else np.empty(0, np.int64)
        self._lengths: NDArray[np.int64] = np.diff(ends, prepend=0)

    def __len__(self) -> int:
        return len(self._arrays["rows"])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return self._lengths

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples."""
        return len(self._arrays["ids"])

    @property
    def num_targets(self) -> int:
        """Tokens that are learned."""
        return int(np.count_nonzero(self._arrays["weights"]))

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """For each example a hash of its row's content, if it was asked for; else zeros."""
        return self._arrays["hashes"]

    @property
    def row_numbers(self) -> NDArray[np.int64]:
        """For each example the number of its row; they never fall."""
        return self._arrays["rows"]

    def example(self, index: int) -> Example:
        """One example."""
        arrays = self._arrays
        first, last = self._run("segment_ends", index)
        segments = []
        for number in range(first, last):
            start, end = self._run("token_ends", number)
            ids, weights = np.asarray(arrays["ids"][start:end]), arrays["weights"][start:end]
            segments.append(Segment(ids, weights.astype(np.float32), int(arrays["parents"][number])))
        return Example(tuple(segments), int(arrays["rows"][index]), self._facts_of(index))

    def where(self, index: int) -> str:
        """The `file:line` that an example's row was read from."""
        return f"{self._files[int(self._arrays['files'][index])]}:{int(self._arrays['lines'][index])}"

    def locate(self, row: int) -> str:
        """The `file:line` of the row whose examples carry this number."""
        return self.where(int(np.searchsorted(self._arrays["rows"], row)))

    def holds(self, row: int) -> bool:
        """Whether there are examples of the row with this number."""
        rows = self._arrays["rows"]
        at = int(np.searchsorted(rows, row))
        return at < len(rows) and int(rows[at]) == row

    def _run(self, name: str, index: int) -> tuple[int, int]:
        ends = self._arrays[name]
        return (int(ends[index - 1]) if index else 0), int(ends[index])

    def _facts_of(self, index: int) -> dict[str, float | tuple[float, ...]]:
        if not self._columns:
            return {}
        first, last = self._run("sequence_ends", index)
        found = {name: tuple(map(float, column[first:last])) for name, column in self._columns.items()}
        return {name: values for name, values in found.items() if not all(np.isnan(values))}
