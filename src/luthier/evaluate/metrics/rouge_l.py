"""ROUGE-L: the longest run of words, with gaps, that both have in the same order, mean F-measure of the rows."""

from collections.abc import Sequence

from luthier.evaluate.intervals import Sums
from luthier.evaluate.metrics._rouge import rouge, settle_stemmer

USUAL = False
ARGUMENT = "stem, to compare the stems of words"
NEEDS = ("rouge_score",)
settle = settle_stemmer


def tally(predictions: Sequence[str], references: Sequence[str], stem: bool) -> Sums:
    """`rouge_l` by the library rouge-score."""
    return rouge("rougeL", predictions, references, stem)
