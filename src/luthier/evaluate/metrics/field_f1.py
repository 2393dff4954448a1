"""How well the fields agree: the harmonic mean of field precision and field recall."""

from collections.abc import Sequence

from luthier.evaluate.intervals import Sums
from luthier.evaluate.metrics._fields import measure_fields, tally_fields


def measure(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`field_f1` over all top-level fields, and `field_f1/KEY` for each one of a reference."""
    return measure_fields("field_f1", lambda counts: counts.f1, predictions, references)


def tally(predictions: Sequence[str], references: Sequence[str]) -> Sums | None:
    """The number over all fields, row by row."""
    return tally_fields("f1", predictions, references)
