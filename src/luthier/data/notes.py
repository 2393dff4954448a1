"""What a person should be told once about a data set, counted over its rows.

Rows are read by several processes; each has notes of its own, and they are merged.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Notes:
    """Formats of rows by file, and things worth telling."""

    formats: dict[str, Counter[str]] = field(default_factory=dict)
    """For each file, how many of its rows have which format."""
    said: dict[str, tuple[int, str]] = field(default_factory=dict)
    """What is to be told about some rows: how many they are, and where the first one is."""

    def count_format(self, file: str, name: str) -> None:
        """One row of a file has this format."""
        self.formats.setdefault(file, Counter())[name] += 1

    def add(self, what: str, where: str) -> None:
        """One row of which this is to be told, such as "columns that are not used: `id`"."""
        count, first = self.said.get(what, (0, where))
        self.said[what] = count + 1, first

    def merge(self, other: "Notes") -> None:
        """Takes in what later rows said."""
        for file, counts in other.formats.items():
            self.formats.setdefault(file, Counter()).update(counts)
        for what, (count, first) in other.said.items():
            before, where = self.said.get(what, (0, first))
            self.said[what] = before + count, where

    def lines(self) -> list[str]:
        """The notes for people: files whose rows have several formats, then everything else."""
        mixed = [
            f"{file} holds rows of several formats: "
            + ", ".join(f"{name} ({count})" for name, count in counts.most_common())
            for file, counts in self.formats.items()
            if len(counts) > 1
        ]
        return mixed + [
            f"{what} ({count} {'row' if count == 1 else 'rows'}, first {first})"
            for what, (count, first) in self.said.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """The notes as plain JSON values."""
        return {"formats": {file: dict(counts) for file, counts in self.formats.items()}, "said": self.said}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The notes that `to_json` wrote."""
        said = {what: (count, first) for what, (count, first) in values["said"].items()}
        return cls({file: Counter(counts) for file, counts in values["formats"].items()}, said)
