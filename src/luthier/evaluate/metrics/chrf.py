"""chrF over all rows, as a fraction: how many runs of up to six letters prediction and reference share.

An F-score of letters with recall counted twice (Popović 2015, W15-3049); `chrf:2` also counts words and pairs of words
(chrF++, W17-4770). It needs no words, so it suits languages without spaces and short answers. The same number as
sacrebleu's: white space does not count, the counts of all rows are summed first, and lengths that the predictions or
the references do not reach are left out.
"""

import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from luthier.errors import ConfigError
from luthier.evaluate.intervals import Floats, Sums

USUAL = False
ARGUMENT = "the longest run of words that counts too: 0 (default) to 2"
LETTERS = 6


def settle(argument: str | None) -> int:
    """The longest run of words that counts."""
    if argument not in (None, "0", "1", "2"):
        raise ConfigError(f"chrf was given {argument!r} behind the colon; it takes 0, 1 or 2, such as chrf:2")
    return int(argument or 0)


def tally(predictions: Sequence[str], references: Sequence[str], words: int) -> Sums:
    """`chrf`: for each length the runs that are given, wanted and right, and chrF over their sums."""
    rows = [_counts(*pair, words) for pair in zip(predictions, references, strict=True)]
    return Sums(np.array(rows, dtype=np.float64), _chrf)


def _counts(prediction: str, reference: str, words: int) -> list[int]:
    found: list[int] = []
    for given, wanted in zip(_runs(prediction, words), _runs(reference, words), strict=True):
        # what is given counts only where there is something to agree with
        found += [given.total() if wanted else 0, wanted.total(), (given & wanted).total()]
    return found


def _runs(text: str, words: int) -> list[Counter[tuple[str, ...]]]:
    """Runs of letters of each length, then runs of words."""
    letters, parts = list("".join(text.split())), _words(text)
    return [_grams(letters, size + 1) for size in range(LETTERS)] + [
        _grams(parts, size + 1) for size in range(words)
    ]


def _grams(items: list[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(items[start : start + size]) for start in range(len(items) - size + 1))


def _words(text: str) -> list[str]:
    """Words, with one sign of punctuation at their end, or else at their start, as a word of its own."""
    found: list[str] = []
    for word in text.split():
        if len(word) > 1 and word[-1] in string.punctuation:
            found += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in string.punctuation:
            found += [word[0], word[1:]]
        else:
            found.append(word)
    return found


def _chrf(sums: Floats) -> Floats:
    """The F-score with recall twice as heavy (β = 2) of the mean precision and the mean recall over the lengths."""
    given, wanted, right = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    counts = (given > 0) & (wanted > 0)
    number = np.maximum(counts.sum(-1), 1)
    precision = np.where(counts, right / np.maximum(given, 1), 0).sum(-1) / number
    recall = np.where(counts, right / np.maximum(wanted, 1), 0).sum(-1) / number
    below = 4 * precision + recall
    return np.where(below > 0, 5 * precision * recall / np.where(below > 0, below, 1), 0.0)
