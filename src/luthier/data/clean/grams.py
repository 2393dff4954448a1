"""Runs of words as numbers, which are compared faster and kept smaller than the words themselves."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_FACTOR = 0x9E3779B97F4A7C15  # odd, with bits all over: 2^64 over the golden ratio


def gram_hashes(words: Sequence[str], length: int, salt: str = "") -> NDArray[np.uint64]:
    """A number of 64 bits for every run of `length` words, in order.

    Fewer words than that are one run. `salt` keeps apart what is not to be compared.
    """
    size = min(length, len(words))
    if not size:
        return np.empty(0, np.uint64)
    of_word = {word: _hash(word) for word in set(words)}
    single = np.array([of_word[word] for word in words], dtype=np.uint64)
    count = len(words) - size + 1
    result = np.full(count, _hash(salt), dtype=np.uint64)
    for place in range(size):  # polynomials modulo 2^64, all runs at a time
        result = result * np.uint64(_FACTOR) + single[place : place + count]
    return _mixed(result)


def _hash(word: str) -> int:
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same numbers with all their bits depending on one another, low ones too."""
    values = (values ^ (values >> np.uint64(32))) * np.uint64(_FACTOR)
    return values ^ (values >> np.uint64(29))
