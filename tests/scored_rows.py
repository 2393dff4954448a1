"""Random rows for methods that train a head of another kind."""

import numpy as np

from luthier.data.batch import Example, Segment
from luthier.data.draft import STEP_WEIGHT
from luthier.data.encode_scored import QUERY
from tiny_models import VOCAB

READS = ("class", "number", "steps", "similar", "relevance")


def scored_rows(reads: str, num_rows: int = 24, seed: int = 0) -> list[Example]:
    """Rows of texts with a label, of steps, or of a query with texts apart or joined to it."""
    draw = np.random.default_rng([seed, 11])
    return [_row(reads, draw, number) for number in range(num_rows)]


def _row(reads: str, draw: np.random.Generator, number: int) -> Example:
    if reads == "steps":
        (segment,) = _segments(draw, 1, least=8)
        places = np.sort(draw.choice(np.arange(1, len(segment.ids)), int(draw.integers(1, 4)), replace=False))
        segment.weights[places] = STEP_WEIGHT + draw.integers(0, 2, len(places))
        return Example((segment,), number)
    if reads in ("class", "number"):
        label = float(draw.integers(0, 3)) if reads == "class" else float(draw.normal())
        return Example(_segments(draw, 1), number, {"label": label})
    num = int(draw.integers(1, 4))
    if reads == "similar":
        relevance = (QUERY, 1.0, *[0.0] * (num - 1))
        return Example(_segments(draw, num + 1), number, {"relevance": relevance})
    (query,) = _segments(draw, 1)
    labels = tuple(float(draw.choice([0.0, 0.25, 1.0])) for _ in range(num))
    return Example((query, *_segments(draw, num, parent=0)), number, {"relevance": labels})


def _segments(draw: np.random.Generator, num: int, least: int = 1, parent: int = -1) -> tuple[Segment, ...]:
    made = []
    for _ in range(num):
        ids = draw.integers(3, VOCAB, int(draw.integers(least, 12))).astype(np.int32)
        made.append(Segment(ids, np.zeros(len(ids), np.float32), parent))
    return tuple(made)
