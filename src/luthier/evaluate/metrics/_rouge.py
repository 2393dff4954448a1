"""ROUGE by Google's library rouge-score, the mean F-measure of the rows; shared by its three forms.

ROUGE (Lin 2004, aclanthology W04-1013) counts what prediction and reference share: words (1), pairs of neighbours (2)
or their longest common subsequence (L). The library knows words of the letters a to z and digits only: texts in other
alphabets have none, and score 0.
"""

from collections.abc import Sequence

from luthier.errors import ConfigError
from luthier.evaluate.intervals import Sums, mean

USES_STEMMER = {None: False, "stem": True}


def settle_stemmer(argument: str | None) -> bool:
    """Whether words are cut to their stems (Porter), as most papers do."""
    if argument not in USES_STEMMER:
        raise ConfigError(f"ROUGE was given {argument!r} behind the colon; it knows `stem` only")
    return USES_STEMMER[argument]


def rouge(kind: str, predictions: Sequence[str], references: Sequence[str], stem: bool) -> Sums:
    """The mean F-measure of one kind of the library."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=stem)
    pairs = zip(predictions, references, strict=True)
    return mean([scorer.score(reference, prediction)[kind].fmeasure for prediction, reference in pairs])
