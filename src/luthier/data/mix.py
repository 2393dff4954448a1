"""How rows of several data sets are drawn: numbers that depend on a key and a count, and on nothing else.

No generator has a state that would have to be kept: the n-th draw is made anew from the key and n.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np

_BLOCK = 4096


class Draws:
    """The n-th number of an endless row of uniform ones in [0, 1), for a key of whole numbers."""

    def __init__(self, *key: int):
        self._key = key
        self._block = -1
        self._values: list[float] = []

    def __call__(self, number: int) -> float:
        """The number at a place, counted from 0."""
        block, place = divmod(number, _BLOCK)
        if block != self._block:
            self._values = self._drawn(np.random.default_rng([*self._key, block])).tolist()
            self._block = block
        return self._values[place]

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        return rng.random(_BLOCK)


class Phases(Draws):
    """Like `Draws`, but spread evenly: of every 4096 in a row, about as many lie in each interval as it is wide."""

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        return (rng.permutation(_BLOCK) + rng.random()) / _BLOCK


class SetDraws:
    """From which set the n-th row of a mix comes, in the given proportions."""

    def __init__(self, shares: Sequence[float], *key: int):
        self._key = key
        self._edges = np.cumsum(np.asarray(shares, np.float64))[:-1]
        self._block = -1
        self._values: list[int] = []

    def __call__(self, number: int) -> int:
        """The set's number for a place, counted from 0."""
        block, place = divmod(number, _BLOCK)
        if block != self._block:
            draws = np.random.default_rng([*self._key, block]).random(_BLOCK)
            self._values = np.searchsorted(self._edges, draws, side="right").tolist()
            self._block = block
        return self._values[place]


def shares(sizes: Sequence[float], weights: Sequence[float], temperature: float = 1.0) -> list[float]:
    """The share of each set in a mix: (weight x rows) ** (1 / temperature), scaled to a sum of 1.

    `sizes` are the rows that a set gives an epoch. A temperature above 1 evens the shares out.
    """
    raw = np.log(np.asarray(sizes, np.float64)) + np.log(np.asarray(weights, np.float64))
    powered = np.exp((raw - raw.max()) / temperature)
    return (powered / powered.sum()).tolist()


def times(phase: float, repeat: float, epoch: int) -> int:
    """How often a row comes in an epoch, when rows come `repeat` times on average.

    Over epochs the counts add up: after n epochs a row has come n x repeat times, rounded up or down.
    """
    return ceil((epoch + 1) * repeat - phase) - ceil(epoch * repeat - phase)
