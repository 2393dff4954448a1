"""The share of predictions that are valid JSON, where JSON was wanted."""

from collections.abc import Sequence

from luthier.evaluate.metrics._json import read_json


def measure(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`json_valid` over the rows whose reference is JSON, strictly read; nothing if there are none."""
    asked = [text for text, reference in zip(predictions, references, strict=True) if read_json(reference)]
    if not asked:
        return {}
    return {"json_valid": sum(read_json(text) is not None for text in asked) / len(asked)}
