"""Of the fields that the references want, the share that the predictions give right."""

from collections.abc import Sequence

from luthier.evaluate.intervals import Sums
from luthier.evaluate.metrics._fields import measure_fields, tally_fields


def measure(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`field_recall` over all top-level fields, and `field_recall/KEY` for each one of a reference."""
    return measure_fields("field_recall", lambda counts: counts.recall, predictions, references)


def tally(predictions: Sequence[str], references: Sequence[str]) -> Sums | None:
    """The number over all fields, row by row."""
    return tally_fields("recall", predictions, references)
