"""What a filter remembers, as bytes that a checkpoint can keep."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class State:
    """What one filter remembers."""

    arrays: dict[str, NDArray[Any]]
    facts: dict[str, Any]
    """Everything else, as JSON values."""


def to_bytes(states: Mapping[str, State]) -> bytes:
    """The states of several filters as bytes."""
    arrays = {f"{name}.{key}": array for name, one in states.items() for key, array in one.arrays.items()}
    facts = json.dumps({name: one.facts for name, one in states.items()}).encode()
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, facts=np.frombuffer(facts, np.uint8), **arrays)
    return stream.getvalue()


def from_bytes(content: bytes) -> dict[str, State]:
    """The states that `to_bytes` wrote."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        return {
            name: State(
                {key.partition(".")[2]: arrays[key] for key in arrays.files if key.startswith(f"{name}.")},
                own,
            )
            for name, own in facts.items()
        }
