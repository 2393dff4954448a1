"""What a person should be told once about a data set, counted over its rows.

Rows are read by several processes; each has notes of its own, and they are merged.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from luthier.data.values import listed

_MOST = 200
"""How many different notes, and names of columns in one, are kept; rows with more are still counted."""
_OTHERS = "other notes that are not listed"


@dataclass
class Notes:
    """Formats of rows by file, and things worth telling."""

    formats: dict[str, Counter[str]] = field(default_factory=dict)
    """For each file, how many of its rows have which format."""
    said: dict[str, tuple[int, str]] = field(default_factory=dict)
    """What is to be told about some rows: how many they are, and where the first one is."""
    columns: dict[str, dict[str, None]] = field(default_factory=dict)
    """Names of columns that belong to what is told, in the order in which they were found."""

    def count_format(self, file: str, name: str) -> None:
        """One row of a file has this format."""
        self.formats.setdefault(file, Counter())[name] += 1

    def add(self, what: str, where: str, columns: Iterable[str] = ()) -> None:
        """One row of which this is to be told, such as "columns that are not used", and the columns it is about."""
        self._add(what, 1, where, columns)

    def _add(self, what: str, num: int, where: str, columns: Iterable[str]) -> None:
        if what not in self.said and len(self.said) >= _MOST:
            what, columns = _OTHERS, ()
        count, first = self.said.get(what, (0, where))
        self.said[what] = count + num, first
        for column in columns:
            known = self.columns.setdefault(what, {})
            if column in known or len(known) < _MOST:
                known[column] = None

    def merge(self, other: "Notes") -> None:
        """Takes in what later rows said."""
        for file, counts in other.formats.items():
            self.formats.setdefault(file, Counter()).update(counts)
        for what, (count, first) in other.said.items():
            self._add(what, count, first, other.columns.get(what, ()))

    def lines(self) -> list[str]:
        """The notes for people: files whose rows have several formats, then everything else."""
        mixed = [
            f"{file} holds rows of several formats: "
            + ", ".join(f"{name} ({count})" for name, count in counts.most_common())
            for file, counts in self.formats.items()
            if len(counts) > 1
        ]
        return mixed + [
            f"{what}{self._listed(what)} ({count} {'row' if count == 1 else 'rows'}, first {first})"
            for what, (count, first) in self.said.items()
        ]

    def _listed(self, what: str) -> str:
        return f": {listed(self.columns[what])}" if what in self.columns else ""

    def to_json(self) -> dict[str, Any]:
        """The notes as plain JSON values."""
        return {
            "formats": {file: dict(counts) for file, counts in self.formats.items()},
            "said": self.said,
            "columns": {what: list(names) for what, names in self.columns.items()},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The notes that `to_json` wrote."""
        said = {what: (count, first) for what, (count, first) in values["said"].items()}
        columns = {what: dict.fromkeys(names) for what, names in values.get("columns", {}).items()}
        return cls({file: Counter(counts) for file, counts in values["formats"].items()}, said, columns)
