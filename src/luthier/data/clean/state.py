"""What filters remember, in parts: each holds what is new since the one before, so nothing is written twice.

A filter remembers rows in their order, the latest `limit` of them at least and never twice as many: when so many are
there, the older half is forgotten at once. So of all parts together only the last ones are ever needed.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class State:
    """What one filter remembers, or what is new in it."""

    arrays: dict[str, NDArray[Any]]
    """One item a row, in order."""
    total: int
    """Rows that were ever remembered."""
    limit: int
    facts: dict[str, Any]
    """Everything else, as JSON values; the newest hold."""

    @property
    def num_rows(self) -> int:
        """Rows of this part."""
        return len(next(iter(self.arrays.values())))

    @property
    def num_needed(self) -> int:
        """How many of the latest rows are still remembered."""
        return self.total - max(0, ((self.total - 1) // self.limit - 1) * self.limit)


def to_bytes(states: Mapping[str, State]) -> bytes:
    """The states of several filters as bytes."""
    arrays = {f"{name}.{key}": array for name, one in states.items() for key, array in one.arrays.items()}
    about = {name: [one.total, one.limit, one.facts] for name, one in states.items()}
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, facts=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    return stream.getvalue()


def from_bytes(content: bytes) -> dict[str, State]:
    """The states that `to_bytes` wrote."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        about = json.loads(arrays["facts"].tobytes())
        return {
            name: State(
                {key.partition(".")[2]: arrays[key] for key in arrays.files if key.startswith(f"{name}.")},
                *own,
            )
            for name, own in about.items()
        }


def joined(newest_first: Iterable[bytes]) -> bytes:
    """Parts as one: what is still remembered after the newest of them. No more are taken than that needs."""
    read: list[dict[str, State]] = []
    for part in newest_first:
        read.insert(0, from_bytes(part))
        rows = {name: sum(one[name].num_rows for one in read) for name in read[-1]}
        if all(rows[name] >= last.num_needed for name, last in read[-1].items()):
            break
    return to_bytes({name: _as_one([one[name] for one in read]) for name in read[-1]})


def _as_one(states: Sequence[State]) -> State:
    last = states[-1]
    arrays = {
        key: np.concatenate([one.arrays[key] for one in states])[-last.num_needed or None :]
        for key in last.arrays
    }
    return State(arrays, last.total, last.limit, last.facts)
