"""How well generated texts agree with the texts that were wanted. Plain Python, no torch.

Each file here whose name has no leading underscore is a metric of that name. It has one of two functions:

- `tally(predictions, references)` returns what each row adds to the number (`intervals.Sums`), so that an interval can
  be told with it, or None where it does not apply to these references (they hold no JSON, say).
- `measure(predictions, references)` returns fractions from 0 to 1 by name: the metric's own name for the number over
  all rows, `name/part` for a part of it (`field_f1/date`); nothing where it does not apply. A file with both gives the
  same number with both.

It may say more of itself:

- `USUAL = False`: it is measured only where it is named.
- `ARGUMENT`: what stands behind a colon, in words (`regex:^yes`). `settle(argument)` reads it before any work (a
  missing one is None) and may raise ConfigError; what it returns is the third thing that `tally` and
  `measure` are given.
- `COLUMN = True`: the argument names a column of the row, whose text takes the place of the reference.
- `NEEDS`: the modules of the extra `evaluate` that it uses.

A new metric is one new file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any

from luthier.errors import ConfigError, DataError

if TYPE_CHECKING:
    from luthier.evaluate.intervals import Sums

Texts = Sequence[str]


@dataclass(frozen=True)
class Metric:
    """A metric as it was asked for. Called with predictions and references it returns its numbers by name."""

    label: str
    """As it was asked for, `regex:^yes`: the name of its number."""
    name: str
    _measure: Callable[[Texts, Texts], dict[str, float]] | None
    _tally: "Callable[[Texts, Texts], Sums | None] | None"
    column: str | None = None
    """The column of the row that takes the place of the reference."""

    def __call__(self, predictions: Texts, references: Texts) -> dict[str, float]:
        return self.both(predictions, references)[0]

    def both(self, predictions: Texts, references: Texts) -> "tuple[dict[str, float], Sums | None]":
        """The numbers by name, and what each row adds to the number over all rows: None where that cannot be told."""
        sums = self._tally(predictions, references) if self._tally else None
        if self._measure is None:
            return ({} if sums is None else {self.label: sums.estimate}), sums
        found = self._measure(predictions, references)
        return {f"{self.label}{key.removeprefix(self.name)}": value for key, value in found.items()}, sums


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


def usual() -> list[str]:
    """The names of the metrics that are measured where none is named."""
    return [name for name in names() if getattr(_module(name), "USUAL", True)]


def find(asked: str, *, columns: bool = False) -> Metric:
    """The metric that was asked for, with its argument if it takes one: `exact_match`, `regex:^yes`.

    Args:
        asked: its name, or name, colon and argument.
        columns: whether the rows' other columns are at hand.

    Raises:
        ConfigError: there is no such metric, its argument is wrong, or what it needs is not installed.
    """
    name, colon, argument = asked.partition(":")
    if name not in names():
        near = get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"there is no metric {name!r}; {hint}known are: {', '.join(names())}")
    module = _module(name)
    takes: str | None = getattr(module, "ARGUMENT", None)
    if colon and takes is None:
        raise ConfigError(f"the metric {name!r} takes nothing behind a colon, but it was given {argument!r}")
    missing = [needed for needed in getattr(module, "NEEDS", ()) if find_spec(needed) is None]
    if missing:
        raise ConfigError(
            f"the metric {name!r} needs {', '.join(missing)}, which is not installed; "
            "install it with: pip install 'luthier[evaluate]'"
        )
    column: str | None = argument if getattr(module, "COLUMN", False) and argument else None
    if getattr(module, "COLUMN", False) and not columns:
        raise ConfigError(
            f"the metric {name!r} reads a column of the rows, which are at hand in `luthier evaluate` only"
        )
    more = (module.settle(argument if colon else None),) if takes is not None else ()
    tally = _with(module.tally, more) if hasattr(module, "tally") else None
    measure = _with(module.measure, more) if hasattr(module, "measure") else None
    return Metric(asked, name, measure, tally, column)


def score(
    predictions: Sequence[str], references: Sequence[str], metrics: Sequence[str] | None = None
) -> Scores:
    """Compares each prediction with the reference at the same place.

    `metrics` names what to measure; absent, everything usual that applies. Raises `DataError` if there is nothing
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
    for name in usual() if metrics is None else metrics:
        values.update(find(name)(predictions, references))
    return Scores(len(references), values)


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name}")


def _with(function: Callable[..., Any], more: tuple[Any, ...]) -> Callable[[Texts, Texts], Any]:
    return lambda predictions, references: function(predictions, references, *more)


def _label(name: str) -> str:
    metric, slash, part = name.partition("/")
    return metric.replace("_", " ") + (f": {part}" if slash else "")
