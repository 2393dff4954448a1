"""How well generated texts agree with the texts that were wanted. Plain Python, no torch.

Each file here whose name has no leading underscore is a metric of that name. It has one function,
`measure(predictions, references)`, which returns fractions from 0 to 1 by name: the metric's own name for the
number over all rows, `name/part` for a part of it (`field_f1/date`). A metric that does not apply to the
references (they hold no JSON, say) returns nothing. A new metric is one new file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from luthier.errors import ConfigError, DataError

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


@dataclass(frozen=True)
class Scores:
    """What the metrics found over a set of rows."""

    num_rows: int
    values: dict[str, float]
    """Fractions from 0 to 1 by name: `exact_match`, `field_f1`, `field_f1/date` ..."""

    def to_dict(self) -> dict[str, Any]:
        """All numbers in one flat dictionary, ready for a line of JSON."""
        return {"num_rows": self.num_rows, **self.values}

    def table(self, details: Sequence[str] = ("field_f1",)) -> list[tuple[str, str]]:
        """The numbers as (label, value) rows for people.

        The numbers over all rows come first, then the parts of the metrics named in `details`.
        """
        whole = [name for name in self.values if "/" not in name]
        parts = [name for name in self.values if "/" in name and name.split("/")[0] in details]
        return [(_label(name), f"{self.values[name]:.3f}") for name in (*whole, *parts)]


def names() -> list[str]:
    """The names of all metrics, in the order of the alphabet."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def find(name: str) -> Metric:
    """The metric of this name."""
    if name not in names():
        near = get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"there is no metric {name!r}; {hint}known are: {', '.join(names())}")
    return import_module(f"{__name__}.{name}").measure


def score(
    predictions: Sequence[str], references: Sequence[str], metrics: Sequence[str] | None = None
) -> Scores:
    """Compares each prediction with the reference at the same place.

    `metrics` names what to measure; absent, everything that applies. Raises `DataError` if there is nothing
    to compare or the numbers of texts differ, `ConfigError` for an unknown metric.
    """
    if len(predictions) != len(references):
        raise DataError(
            f"{len(predictions)} predictions cannot be scored against {len(references)} references, since "
            "they are compared in pairs; give one prediction for each reference, an empty one where the "
            "model said nothing"
        )
    if not references:
        raise DataError("there are no rows to score; give at least one prediction with its reference")
    values: dict[str, float] = {}
    for name in names() if metrics is None else metrics:
        values.update(find(name)(predictions, references))
    return Scores(len(references), values)


def _label(name: str) -> str:
    metric, slash, part = name.partition("/")
    return metric.replace("_", " ") + (f": {part}" if slash else "")
