"""ROUGE-2: how many pairs of neighbouring words prediction and reference share, mean F-measure of the rows."""

from collections.abc import Sequence

from luthier.evaluate.intervals import Sums
from luthier.evaluate.metrics._rouge import rouge, settle_stemmer

USUAL = False
ARGUMENT = "stem, to compare the stems of words"
NEEDS = ("rouge_score",)
settle = settle_stemmer


def tally(predictions: Sequence[str], references: Sequence[str], stem: bool) -> Sums:
    """`rouge2` by the library rouge-score."""
    return rouge("rouge2", predictions, references, stem)
