"""Rows into packs of at most a number of tokens: best fit, longest first (Johnson, 1973)."""

import numpy as np
from numpy.typing import NDArray


def pack(lengths: NDArray[np.integer], capacity: int) -> list[NDArray[np.int64]]:
    """Row numbers of each pack; every row is in one, and no pack holds more than `capacity` tokens.

    Each row, from the longest to the shortest, goes into the fullest pack that has room for it; rows of one
    length keep their order. The spaces left are the bits of one integer, so the tightest one that is large
    enough is its lowest bit after a shift: time is linear in rows times capacity / 64.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    assert not len(order) or (lengths[order[0]] <= capacity and lengths[order[-1]] >= 0), "every row fits"
    packs: list[list[int]] = []
    with_space: dict[int, list[int]] = {}  # space left -> packs, the newest last
    spaces = 0  # bit s is set if a pack has s tokens of space
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        enough = spaces >> length
        if enough:
            space = length + (enough & -enough).bit_length() - 1
            chosen = with_space[space].pop()
            if not with_space[space]:
                spaces ^= 1 << space
        else:
            space, chosen = capacity, len(packs)
            packs.append([])
        packs[chosen].append(row)
        left = with_space.setdefault(space - length, [])
        if not left:
            spaces |= 1 << (space - length)
        left.append(chosen)
    return [np.array(rows, dtype=np.int64) for rows in packs]
