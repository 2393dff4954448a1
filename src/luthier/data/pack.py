"""Rows into packs of at most a number of tokens: best fit, longest first (Johnson, 1973).

Rows of one length are alike, and so are packs with one space left; so the work is done on such groups, and its
time hardly grows with the number of rows. The packs are those that placing row by row would give.

Shape suffixes: N rows, P packs, M moves.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Run = tuple[int, int, int]
"""Some packs with one space left: the first to be filled, how many, and the step from one to the next (1 or -1)."""


@dataclass(frozen=True, eq=False)
class Packs(Sequence[Rows]):
    """Row numbers of each pack, held end to end: millions of packs are two arrays."""

    rows_N: Rows
    """The rows of the first pack, then those of the second, and so on."""
    starts_P: Rows
    """Where each pack begins in `rows_N`, and after the last one its end."""

    def __len__(self) -> int:
        return len(self.starts_P) - 1

    @overload
    def __getitem__(self, index: int) -> Rows: ...
    @overload
    def __getitem__(self, index: slice) -> list[Rows]: ...
    def __getitem__(self, index: int | slice) -> Rows | list[Rows]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"pack {index} of {len(self)}")
        index %= len(self)
        return self.rows_N[self.starts_P[index] : self.starts_P[index + 1]]

    def __iter__(self) -> Iterator[Rows]:
        starts = self.starts_P.tolist()
        for start, end in pairwise(starts):
            yield self.rows_N[start:end]

    def sums(self, values_N: NDArray[np.number]) -> NDArray[np.float64]:
        """Sum of a value of rows over each pack, [P]: `values_N` has one for each row by its number."""
        if not len(self):
            return np.zeros(0)
        return np.add.reduceat(values_N[self.rows_N].astype(np.float64), self.starts_P[:-1])

    def renumbered(self, numbers_N: Rows) -> "Packs":
        """The same packs, with `numbers_N[i]` in the place of row i."""
        return Packs(numbers_N[self.rows_N], self.starts_P)


def pack(lengths: NDArray[np.integer], capacity: int) -> Packs:
    """Every row is in one pack, and no pack holds more than `capacity` tokens.

    Each row, from the longest to the shortest, goes into the fullest pack that has room for it, the newest of
    these; rows of one length keep their order.
    """
    order_N, longest_first = _longest_first(lengths, capacity)
    assert not len(order_N) or (longest_first[0] <= capacity and longest_first[-1] >= 0), "every row fits"
    edges = np.flatnonzero(np.diff(longest_first, prepend=-1, append=-1))
    packing = _Packing(capacity)
    for length, count in zip(longest_first[edges[:-1]].tolist(), np.diff(edges).tolist(), strict=True):
        packing.place(length, count)
    return _handed_out(order_N, packing)


@dataclass
class _Packing:
    """Packs under way."""

    capacity: int
    num_packs: int = 0
    moves: list[tuple[int, int, int, int]] = field(default_factory=list)
    """In the order of rows: a run of packs, and the number of rows that each of them takes."""
    runs: dict[int, list[Run]] = field(default_factory=dict)
    """Packs by the space they have left, the newest last."""
    spaces: list[int] = field(default_factory=list)
    """The keys of `runs`, in order."""

    def place(self, length: int, count: int) -> None:
        """Puts so many rows of one length into packs."""
        while count:
            space, (first, packs, step) = self._tightest(length, count)
            # until it has no room for another row, a pack that got one stays the tightest
            each = space // length if length else count
            filled = min(packs, count // each)
            if not filled:
                filled, each = 1, count
            if filled < packs:
                self._push(space, (first + filled * step, packs - filled, step))
            self._push(space - each * length, (first + (filled - 1) * step, filled, -step))
            self.moves.append((first, filled, step, each))
            count -= filled * each

    def _tightest(self, length: int, count: int) -> tuple[int, Run]:
        """The newest packs with the least space that is enough, or as many new ones as are needed, and their space."""
        at = bisect_left(self.spaces, length)
        if at < len(self.spaces):
            space = self.spaces[at]
            runs = self.runs[space]
            run = runs.pop()
            if not runs:
                del self.spaces[at], self.runs[space]
            return space, run
        needed = -(-count // (self.capacity // length)) if length else 1
        run = self.num_packs, needed, 1
        self.num_packs += needed
        return self.capacity, run

    def _push(self, space: int, run: Run) -> None:
        if space not in self.runs:
            self.runs[space] = []
            insort(self.spaces, space)
        self.runs[space].append(run)


def _longest_first(lengths: NDArray[np.integer], capacity: int) -> tuple[Rows, NDArray[np.int64]]:
    """Row numbers from the longest row to the shortest, equal ones as they come; and their lengths."""
    wide = lengths.astype(np.int64)
    keys = capacity - wide
    if capacity < 2**16 and len(keys) and keys.min() >= 0 and keys.max() < 2**16:
        keys = keys.astype(np.uint16)  # which numpy sorts by radix
    order_N = np.argsort(keys, kind="stable").astype(np.int64)
    return order_N, wide[order_N]


def _handed_out(order_N: Rows, packing: _Packing) -> Packs:
    """The packs: the moves take the rows one after the other."""
    moves = np.array(packing.moves, dtype=np.int64).reshape(-1, 4)
    first_M, filled_M, step_M, each_M = moves.T
    rows_M = filled_M * each_M
    move_N = np.repeat(np.arange(len(moves)), rows_M)
    within_N = np.arange(len(order_N)) - np.repeat(np.cumsum(rows_M) - rows_M, rows_M)
    pack_N = first_M[move_N] + within_N // each_M[move_N] * step_M[move_N]
    by_pack_N = np.argsort(pack_N.astype(np.int32), kind="stable")
    counts_P = np.bincount(pack_N, minlength=packing.num_packs)
    return Packs(order_N[by_pack_N], np.concatenate([[0], np.cumsum(counts_P)]).astype(np.int64))
