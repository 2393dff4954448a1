"""Where each setting was written, so that a fault can point at it."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """A spot that a fault points at: a line of a file, an override, or the source as a whole."""

    label: str
    line: int | None = None
    rank: int = 0
    """The file comes first, with 0; the overrides follow as they were given."""

    def __str__(self) -> str:
        return self.label if self.line is None else f"{self.label}:{self.line}"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and where."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass
class Places:
    """The place of every key that was written. Keys are paths such as `("data", "path", 0)`."""

    source: Place
    of_key: dict[KeyPath, Place] = field(default_factory=dict)

    def find(self, path: KeyPath) -> Place:
        """Where a key was written; for one that was not, where the closest section around it was."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.of_key:
                return self.of_key[path[:length]]
        return self.source

    def replace(self, path: KeyPath, place: Place) -> None:
        """Says that a key, and all below it, were written here instead."""
        for known in [known for known in self.of_key if known[: len(path)] == path]:
            del self.of_key[known]
        for length in range(1, len(path)):
            self.of_key.setdefault(path[:length], place)
        self.of_key[path] = place


@dataclass(frozen=True)
class Source:
    """A configuration as it was written: plain values, the place of each, and what could not be read."""

    values: dict[str, Any]
    places: Places
    faults: list[Fault] = field(default_factory=list)


def dotted(path: KeyPath) -> str:
    """The path as people write it: `data.path[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def in_order(faults: Iterable[Fault]) -> list[str]:
    """The messages, each once: by the file's lines, then those without a line, then those of overrides."""
    ordered = sorted(faults, key=lambda fault: (fault.place.rank, fault.place.line or sys.maxsize))
    return list(dict.fromkeys(str(fault) for fault in ordered))
