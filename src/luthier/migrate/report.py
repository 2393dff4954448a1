"""Shows in the terminal what became of each key."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from luthier.config.words import shown
from luthier.migrate.findings import Finding, Imported, Kind

_LONGEST = 40
"""Longer values are in the file only."""
_STYLES = {
    Kind.UNKNOWN: "bold red",
    Kind.NONE: "yellow",
    Kind.NOTED: "cyan",
    Kind.MAPPED: "green",
    Kind.NEEDLESS: "dim",
}


def show(imported: Imported, console: Console, *, everything: bool = False) -> None:
    """Prints a table of the keys, those first that need attention. `everything`: also those that need none."""
    table = Table("line", "key", "", "here", box=None, pad_edge=False, show_edge=False)
    hidden = 0
    for kind in Kind:
        for finding in imported.of(kind):
            if kind is Kind.NEEDLESS and not everything:
                hidden += 1
                continue
            here = _here(imported, finding)
            table.add_row(
                str(finding.line or ""),
                Text(finding.key),
                Text(kind.value, style=_STYLES[kind]),
                Text(here),
            )
    console.print(table)
    if hidden:
        console.print(f"{hidden} more need nothing here (--all lists them)", style="dim", highlight=False)


def _here(imported: Imported, finding: Finding) -> str:
    """Luthier's key with its value, if that is short, and what is to say about it."""
    value: Any = imported.values
    for part in (finding.target or "").split("."):
        value = value.get(part) if isinstance(value, dict) else None
    plain = value is not None and not isinstance(value, dict) and len(str(value)) <= _LONGEST
    place = f"{finding.target} = {shown(value).strip(chr(34))}" if plain else finding.target or ""
    return "; ".join(part for part in (place, finding.text) if part)


def counted(imported: Imported) -> str:
    """How many keys became what, in words."""
    counts = [(kind, len({finding.key for finding in imported.of(kind)})) for kind in Kind]
    return ", ".join(f"{number} {kind.value}" for kind, number in counts if number)
