"""A stream of tokens as a forest of segments, and what a model asks of attention over it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Forest:
    """Where the segments of a stream lie, and which of them each one continues."""

    starts: tuple[int, ...]
    """Start of each segment in the stream; the last entry is the stream's length."""
    parents: tuple[int, ...]
    """For each segment the one it continues, -1 for a root."""
    windows: set[int | None] = field(default_factory=set, compare=False)
    """The windows that attention layers have asked for while this forest went through them."""
    layouts: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What a device's kernels have worked out about this forest, so that all layers share it."""

    def spans(self) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """Start and stop of each segment, and those of its ancestors from the root down."""
        for segment, parent in enumerate(self.parents):
            ancestors = []
            while parent >= 0:
                ancestors.append((self.starts[parent], self.starts[parent + 1]))
                parent = self.parents[parent]
            yield self.starts[segment], self.starts[segment + 1], ancestors[::-1]


@dataclass(frozen=True)
class AttentionRule:
    """What a model asks of its attention besides causality."""

    scale: float
    window: int | None = None
    """A token sees only keys less than this many positions before it."""
    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap) (Gemma 2, arXiv:2408.00118)."""
    dropout: float = 0.0
