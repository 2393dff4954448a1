"""How many words prediction and reference have in common: the F1 of question answering, mean over the rows.

Words are compared as in SQuAD (arXiv:1606.05250): in lower case, without ASCII punctuation and without the articles a,
an and the; a word counts as often as it occurs in both. Where neither text has a word, they agree.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from luthier.evaluate.intervals import Sums, mean

USUAL = False
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def tally(predictions: Sequence[str], references: Sequence[str]) -> Sums:
    """`token_f1`: the mean of `overlap` over all rows."""
    return mean([overlap(*pair) for pair in zip(predictions, references, strict=True)])


def overlap(prediction: str, reference: str) -> float:
    """2 · common words / (words of the prediction + words of the reference)."""
    given, wanted = words(prediction), words(reference)
    if not given or not wanted:
        return float(given == wanted)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted))


def words(text: str) -> list[str]:
    """The words that count."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()
