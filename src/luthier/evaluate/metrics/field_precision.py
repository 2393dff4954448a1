"""Of the fields that the predictions give, the share that is right."""

from collections.abc import Sequence

from luthier.evaluate.intervals import Sums
from luthier.evaluate.metrics._fields import measure_fields, tally_fields


def measure(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`field_precision` over all top-level fields, and `field_precision/KEY` for each one of a reference."""
    return measure_fields("field_precision", lambda counts: counts.precision, predictions, references)


def tally(predictions: Sequence[str], references: Sequence[str]) -> Sums | None:
    """The number over all fields, row by row."""
    return tally_fields("precision", predictions, references)
