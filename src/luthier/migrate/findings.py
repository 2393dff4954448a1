"""What became of each key of the file that is imported."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What became of a key. The value is its word in reports."""

    UNKNOWN = "not understood"
    """No key of the tool, or a value that cannot be read."""
    NONE = "no counterpart"
    """Luthier has nothing that does this; the text says what that changes."""
    NOTED = "mapped, note"
    """Mapped, but what it means differs in a way that the text tells."""
    MAPPED = "mapped"
    """Means the same."""
    NEEDLESS = "not needed"
    """Changes nothing: Luthier does it by itself, or the tool would not have used it."""


@dataclass(frozen=True)
class Finding:
    """What became of one key."""

    key: str
    """The key as the source has it, dotted where it lies deeper."""
    kind: Kind
    text: str
    target: str | None = None
    """Luthier's dotted key, if there is one."""
    line: int | None = None
    """Line of the source."""


@dataclass(frozen=True)
class Imported:
    """A configuration in Luthier's keys, and how it came about."""

    tool: str
    """Name of the tool, as people write it."""
    file: str
    values: dict[str, Any]
    """What `config_from_dict` reads; only what the source sets, or what its defaults change."""
    findings: list[Finding]
    """One or more for every key of the source that holds a value."""
    notes: dict[str, list[str]] = field(default_factory=dict)
    """Comments for Luthier's dotted keys."""

    def of(self, *kinds: Kind) -> list[Finding]:
        """The findings of these kinds, in the order of the source."""
        return [finding for finding in self.findings if finding.kind in kinds]
