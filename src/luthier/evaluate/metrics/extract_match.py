"""The share of predictions whose answer, as a regular expression finds it, is that of the reference.

`extract_match:#### (.+)` compares what stands behind the last `####` of both texts, as for problems whose answer comes
after a solution. The expression's first group counts, or all of what it finds if it has none; the last place where it
is found counts. In a reference without such a place all of the text is the answer; a prediction without one is wrong.
Answers agree as in `exact_match`, or as numbers (`1,200` and `1200.0`).
"""

import re
from collections.abc import Sequence

from luthier.errors import ConfigError
from luthier.evaluate.intervals import Sums, mean
from luthier.evaluate.metrics.exact_match import matches

USUAL = False
ARGUMENT = "a regular expression"


def settle(argument: str | None) -> re.Pattern[str]:
    """The expression, compiled."""
    if not argument:
        raise ConfigError("extract_match needs an expression, as in 'extract_match:#### (.+)'")
    try:
        return re.compile(argument)
    except re.error as error:
        raise ConfigError(f"extract_match: {argument!r} is no regular expression: {error}") from error


def tally(predictions: Sequence[str], references: Sequence[str], pattern: re.Pattern[str]) -> Sums:
    """`extract_match`: the share of predictions whose answer agrees."""
    pairs = zip(predictions, references, strict=True)
    return mean([_agree(prediction, reference, pattern) for prediction, reference in pairs], binary=True)


def _agree(prediction: str, reference: str, pattern: re.Pattern[str]) -> bool:
    given, wanted = last_found(prediction, pattern), last_found(reference, pattern)
    if given is None:
        return False
    wanted = reference if wanted is None else wanted
    if matches(given, wanted):
        return True
    left, right = _number(given), _number(wanted)
    return left is not None and left == right


def last_found(text: str, pattern: re.Pattern[str]) -> str | None:
    """The first group, or all, of the last place where an expression is found."""
    found = list(pattern.finditer(text))
    if not found:
        return None
    return (found[-1].group(1) if pattern.groups else found[-1].group(0)) or ""


def _number(text: str) -> float | None:
    try:
        return float(text.strip().replace(",", ""))
    except ValueError:
        return None
