"""What `luthier data inspect` prints for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.runs.data_view import DataView, ShownRow, ShownToken
from luthier.runs.histogram import histogram_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from luthier.data.ledger import Ledger

_MOST_PART = 2000


def show(view: DataView, ledger: "Ledger", console: "Console", *, ids: bool, has_model: bool) -> None:
    """Prints everything of the view."""

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False)

    _formats(view, console)
    for number, text in enumerate(ledger.summary().splitlines()):
        line(text, "bold" if number == 0 else "red")
    for name, own in view.sets if len(view.sets) > 1 else ():
        fates = ", ".join(f"{own[fate]:,} {fate}" for fate in ("kept", "truncated", "dropped"))
        line(f"  {name}: {own['read']:,} rows, {fates}")
    width = max((len(name) for name, _ in view.tiles), default=0)
    for name, value in view.tiles[1:]:
        line(f"{name:<{width}}  {value}")
    if view.histogram is not None:
        line(f"{'tokens a row':<{width}}  {histogram_line(view.histogram)}")
    for name, value in view.template:
        line(f"{name}: {value}", "yellow" if name == "note" else "")
    for note in view.notes:
        line(f"note: {note}", "yellow")
    for text in view.advice:
        line(f"advice: {text}", "cyan")
    if not has_model:
        line("Name a model (--model) to see lengths and what is learned.")
    for row in view.rows:
        _row(row, console, ids)


def _formats(view: DataView, console: "Console") -> None:
    kinds = dict.fromkeys(formats for _, formats in view.formats)
    if len(kinds) > 1:
        for file, formats in view.formats:
            console.print(f"format of {file}: {formats}", markup=False, highlight=False)
    else:
        console.print(f"format: {next(iter(kinds), 'none was recognised')}", markup=False, highlight=False)


def _row(row: ShownRow, console: "Console", ids: bool) -> None:
    from rich.text import Text

    state = "" if row.status == "kept" else f" ({row.status}{': ' if row.note else ''}{row.note or ''})"
    colours = ", learned text in green" if row.sequences else ""
    console.print(f"\n{row.where}{state}{colours}:", highlight=False, markup=False)
    for title, tokens in row.sequences:
        if title:
            console.print(f"[{title}]", style="bold", highlight=False, markup=False)
        console.print(_with_ids(tokens) if ids else _coloured(tokens))
    for name, text in row.parts:
        console.print(Text(f"[{name}]", style="bold"))
        console.print(Text(text if len(text) <= _MOST_PART else text[:_MOST_PART] + " ..."))
    if row.cut:
        console.print(f"{row.cut:,} more tokens are not shown", style="dim", highlight=False)


def _coloured(tokens: Sequence[ShownToken]) -> "Text":
    from rich.text import Text

    text = Text()
    for token in tokens:
        text.append(token.text, style="bold green" if token.weight > 0 else "dim")
    return text


def _with_ids(tokens: Sequence[ShownToken]) -> "Text":
    """One token a line: its ids, its weight as a target, and its text."""
    from rich.text import Text

    text = Text()
    for number, token in enumerate(tokens):
        ids = " ".join(map(str, token.ids))
        line = f"{ids:>12}  {token.weight:>4g}  {token.text!r}"
        text.append(("\n" if number else "") + line, style="bold green" if token.weight > 0 else "dim")
    return text
