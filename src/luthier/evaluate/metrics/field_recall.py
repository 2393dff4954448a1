"""Of the fields that the references want, the share that the predictions give right."""

from collections.abc import Sequence

from luthier.evaluate.metrics._fields import measure_fields


def measure(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`field_recall` over all top-level fields, and `field_recall/KEY` for each one of a reference."""
    return measure_fields("field_recall", lambda counts: counts.recall, predictions, references)
