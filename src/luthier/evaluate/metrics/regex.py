"""The share of predictions in which a regular expression is found.

`regex:^(yes|no)$` asks for the whole answer, `regex:\\d+` for a number anywhere. Python's syntax; white space at both
ends of the answer is taken away first. References do not matter.
"""

import re
from collections.abc import Sequence

from luthier.errors import ConfigError
from luthier.evaluate.intervals import Sums, mean

USUAL = False
ARGUMENT = "a regular expression"


def settle(argument: str | None) -> re.Pattern[str]:
    """The expression, compiled."""
    if not argument:
        raise ConfigError("regex needs an expression, as in 'regex:^(yes|no)$'")
    try:
        return re.compile(argument)
    except re.error as error:
        raise ConfigError(f"regex: {argument!r} is no regular expression: {error}") from error


def tally(predictions: Sequence[str], references: Sequence[str], pattern: re.Pattern[str]) -> Sums:
    """`regex`: the share of predictions where it is found."""
    return mean([pattern.search(text.strip()) is not None for text in predictions], binary=True)
