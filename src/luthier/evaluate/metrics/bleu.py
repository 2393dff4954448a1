"""BLEU over all rows, by sacrebleu, as a fraction: 0.27 is what papers call 27.

Precision of runs of one to four words over all rows together, times a penalty for answers that are too short
(arXiv:1804.08771 and Papineni et al. 2002). No mean of rows: the counts of all rows are summed first.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from luthier.errors import ConfigError
from luthier.evaluate.intervals import Floats, Sums

USUAL = False
ARGUMENT = "how sacrebleu cuts words: 13a (default), char, zh, intl or none"
NEEDS = ("sacrebleu",)
_CUTS = ("13a", "char", "zh", "intl", "none")


def settle(argument: str | None) -> str:
    """The name of sacrebleu's tokenizer."""
    if argument is not None and argument not in _CUTS:
        raise ConfigError(
            f"bleu was given {argument!r} behind the colon; known are {', '.join(_CUTS)}, such as bleu:zh"
        )
    return argument or "13a"


def tally(predictions: Sequence[str], references: Sequence[str], cut: str) -> Sums:
    """`bleu`: the counts of each row, and sacrebleu's formula over their sums."""
    from sacrebleu.metrics.bleu import BLEU

    rows = []
    counter = BLEU(tokenize=cut, force=True)
    for prediction, reference in zip(predictions, references, strict=True):
        one = counter.corpus_score([prediction], [[reference]])
        rows.append([*one.counts, *one.totals, one.sys_len, one.ref_len])
    return Sums(np.array(rows, dtype=np.float64), partial(_each, BLEU))


def _each(library: type, sums: Floats) -> Floats:
    def one(row: Floats) -> float:
        counts, totals = row[:4].round().astype(int).tolist(), row[4:8].round().astype(int).tolist()
        found = library.compute_bleu(
            correct=counts, total=totals, sys_len=round(row[8]), ref_len=round(row[9]), smooth_method="exp"
        )
        return found.score / 100

    return np.apply_along_axis(one, -1, sums)
