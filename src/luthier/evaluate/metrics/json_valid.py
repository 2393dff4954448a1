"""The share of predictions that are valid JSON, where JSON was wanted."""

import math
from collections.abc import Sequence

from luthier.evaluate.intervals import Sums, mean
from luthier.evaluate.metrics._json import read_json


def tally(predictions: Sequence[str], references: Sequence[str]) -> Sums | None:
    """`json_valid` over the rows whose reference is JSON, strictly read; nothing if there are none."""
    valid = [
        float(read_json(text) is not None) if read_json(reference) is not None else math.nan
        for text, reference in zip(predictions, references, strict=True)
    ]
    return None if all(map(math.isnan, valid)) else mean(valid, binary=True)
