"""Flat arrays on disk that grow while they are written: what is in memory does not grow with them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

_BUFFERED_VALUES = 1 << 18


class ArrayFile:
    """A one-dimensional `.npy` file. What numpy writes in front of the values has room for their number."""

    def __init__(self, path: Path, dtype: DTypeLike):
        self.path, self.dtype = path, np.dtype(dtype)
        self.size = 0
        """Values so far."""
        self._waiting: list[NDArray[Any]] = []
        self._num_waiting = 0
        self._single: list[float] = []
        self._file = path.open("w+b")
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        """Adds values behind the others."""
        self._waiting.append(np.asarray(values, self.dtype))
        self._num_waiting += len(values)
        self.size += len(values)
        if self._num_waiting >= _BUFFERED_VALUES:
            self._flush()

    def push(self, value: float) -> None:
        """Adds one value; not to be mixed with `append`."""
        self._single.append(value)
        self.size += 1
        if len(self._single) >= _BUFFERED_VALUES:
            self._flush()

    def extend(self, values: Iterable[float]) -> None:
        """Adds plain numbers behind the others."""
        self.append(np.fromiter(values, self.dtype))

    def widened(self, dtype: DTypeLike) -> "ArrayFile":
        """The same values in another type, in the same place. This file must not be used any more."""
        self._flush()
        self._file.close()
        old = self.path.with_suffix(".narrow")
        self.path.rename(old)
        wide = ArrayFile(self.path, dtype)
        with old.open("rb") as file:
            file.seek(self._start)
            while len(part := np.fromfile(file, self.dtype, _BUFFERED_VALUES)):
                wide.append(part)
        old.unlink()
        return wide

    def close(self) -> None:
        """Writes what is left, and how many values there are."""
        self._flush()
        start = self._start
        self._file.seek(0)
        self._write_header()
        assert self._start == start, "the header has kept its length"
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _flush(self) -> None:
        if self._single:
            np.array(self._single, self.dtype).tofile(self._file)
            self._single = []
        if self._waiting:
            np.concatenate(self._waiting).tofile(self._file)
            self._waiting, self._num_waiting = [], 0

    def _write_header(self) -> None:
        head = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.size,),
        }
        np.lib.format.write_array_header_1_0(self._file, head)
        self._start = self._file.tell()
