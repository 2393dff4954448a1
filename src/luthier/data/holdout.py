"""Which rows are held out, told by their content alone.

So a row stays on its side when others are added, taken away or moved, and rows that say the same are always on
the same side.
"""

import json
from collections.abc import Iterable
from hashlib import blake2b
from heapq import heapify, heappushpop
from typing import Any

_ALL = 1 << 64


def content_hash(record: dict[str, Any]) -> int:
    """64 bits of the record's content; the order of its columns does not matter."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def is_held_out(record: dict[str, Any], fraction: float) -> bool:
    """Whether the row is one of this share of all possible ones. A larger share holds the smaller one's rows."""
    return content_hash(record) < fraction * _ALL


def largest_held_out(hashes: Iterable[int], rows: int) -> int:
    """The hash up to which rows are held out, so that it is the `rows` rows with the smallest ones; -1 for none.

    Rows of the same content as the last one are held out with it, so it can be more rows than asked for. Memory
    grows with `rows` only.
    """
    kept: list[int] = []  # negative, so that the heap gives up the largest
    for one in hashes:
        if len(kept) < rows:
            kept.append(-one)
            if len(kept) == rows:
                heapify(kept)
        elif rows and one < -kept[0]:
            heappushpop(kept, -one)
    return -min(kept) if kept else -1


def _plain(value: Any) -> str:
    """A table's value that JSON has no form for: bytes, dates, decimals."""
    return value.hex() if isinstance(value, bytes) else f"{type(value).__name__}:{value}"
