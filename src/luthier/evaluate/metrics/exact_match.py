"""The share of predictions that say exactly what their reference says."""

from collections.abc import Sequence

from luthier.evaluate.intervals import Sums, mean
from luthier.evaluate.metrics._json import read_json, same


def tally(predictions: Sequence[str], references: Sequence[str]) -> Sums:
    """`exact_match`: mean of `matches` over all rows."""
    return mean([matches(*pair) for pair in zip(predictions, references, strict=True)], binary=True)


def matches(prediction: str, reference: str) -> bool:
    """Whether a prediction says what the reference says.

    If both are valid JSON, they match when they are equal as JSON: the same keys with equal values, in any
    order and spacing. Otherwise they match when they are equal as text, white space at both ends aside.
    """
    left, right = read_json(prediction), read_json(reference)
    if left is not None and right is not None:
        return same(left.value, right.value)
    return prediction.strip() == reference.strip()
