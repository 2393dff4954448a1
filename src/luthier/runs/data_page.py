"""A data set as one HTML page that needs nothing else: no network, no script, light or dark as the reader likes.

Everything that comes from the data is escaped.
"""

import html
from collections.abc import Iterable, Sequence
from typing import Any

from luthier.runs.data_view import DataView, ShownRow, ShownToken
from luthier.runs.histogram import HISTOGRAM_STYLE, histogram_html
from luthier.runs.ledger_table import ledger_table
from luthier.runs.report_style import STYLE

_escape = html.escape

_STYLE = """
.state.kept { color: var(--good); } .state.truncated { color: var(--second); }
.state.dropped, .state.set-aside { color: var(--bad); }
.advice { padding: 0.35rem 1.1rem; background: var(--card); border: 1px solid var(--line);
  border-left: 3px solid var(--main); border-radius: 0.6rem; }
ul { margin: 0; padding: 0.35rem 0 0.35rem 1.1rem; } li { padding: 0.2rem 0; overflow-wrap: anywhere; }
.sample { overflow: hidden; } .sample .title { margin-bottom: 0.6rem; }
.sample .title code { overflow-wrap: anywhere; }
.sample h3 { margin-top: 0.9rem; }
.tokens { background: var(--ground); border-radius: 0.35rem; padding: 0.7rem 0.85rem; color: var(--soft);
  max-height: 34rem; overflow: auto; margin-top: 0.6rem; }
.t.learned { color: var(--ink); background: color-mix(in srgb, var(--good) 24%, transparent); }
.key { display: inline-flex; gap: 1rem; font-size: 0.82rem; color: var(--soft); flex-wrap: wrap; }
.key span { padding: 0 0.35rem; border-radius: 0.2rem; } .toggle { margin-right: 0.8rem; }
.toggle { font-size: 0.82rem; color: var(--soft); cursor: pointer; user-select: none; }
input.ids { accent-color: var(--main); margin: 0 0.35rem 0 0; vertical-align: -0.1rem; }
input.ids:checked ~ .tokens .t { box-shadow: inset 0 0 0 1px var(--line); border-radius: 0.2rem; }
input.ids:checked ~ .tokens .t::after { content: attr(data-i); font-size: 0.66em; color: var(--second);
  vertical-align: sub; margin: 0 0.2em 0 0.1em; }
.parts pre { background: var(--ground); border-left: 3px solid var(--line); border-radius: 0.25rem;
  padding: 0.55rem 0.75rem; max-height: 24rem; overflow: auto; }
.sample details { margin: 0.9rem 0 0; } .sample summary { padding: 0.4rem 0.8rem; font-size: 0.85rem; }
td.number, th.number { padding-left: 0.7rem; }
tbody + tbody tr:first-child > * { border-top: 2px solid var(--soft); }
.places td:first-child { white-space: nowrap; }
"""


def render_data_page(view: DataView, written: str) -> str:
    """The page as text; `written` says when and by what."""
    parts = [
        _head(view),
        _tiles(view.tiles),
        _section("What to change", _list(view.advice, "advice")),
        _section("Rows", _rows(view)),
        _section("Lengths", histogram_html(view.histogram) if view.histogram else ""),
        _section("What is learned", "".join(_sample(row, n) for n, row in enumerate(view.rows))),
        _section("Chat template", _table(view.template)),
        _section("Notes", _list(view.notes, "advice")),
        _section("Formats", _table(view.formats)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(view.title)} - Luthier</title>\n"
        f"<style>{STYLE}{_STYLE}{HISTOGRAM_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n<footer>{_escape(written)}</footer>\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{_escape(title)}</h2>{inside}</section>" if inside else ""


def _head(view: DataView) -> str:
    return (
        f'<header><div class="title"><h1>{_escape(view.title)}</h1></div>'
        f'<p class="about">{_escape(" · ".join(view.facts))}</p></header>'
    )


def _tiles(tiles: Sequence[tuple[str, str]]) -> str:
    inside = "".join(
        f'<div class="tile"><span>{_escape(name)}</span><b>{_escape(value)}</b></div>'
        for name, value in tiles
    )
    return f'<div class="tiles">{inside}</div>' if tiles else ""


def _list(lines: Iterable[str], kind: str) -> str:
    inside = "".join(f"<li>{_escape(line)}</li>" for line in lines)
    return f'<div class="{kind}"><ul>{inside}</ul></div>' if inside else ""


def _table(rows: Sequence[tuple[str, str]]) -> str:
    inside = "".join(f"<tr><th>{_escape(name)}</th><td>{_escape(value)}</td></tr>" for name, value in rows)
    return f'<div class="box"><table><tbody>{inside}</tbody></table></div>' if rows else ""


def _rows(view: DataView) -> str:
    ledgers: dict[str, Any] = dict(view.sets) if len(view.sets) > 1 else view.ledger
    return ledger_table(ledgers) + _places(view.ledger)


def _places(ledger: dict[str, Any]) -> str:
    """Where rows were dropped first, and the full words, for each reason."""
    lines = [
        f"<tr><td>{_escape(where)}</td><td>{_escape(reason)}</td></tr>"
        for seen in ledger.get("examples", {}).values()
        for where, reason in seen
    ]
    if not lines:
        return ""
    table = f'<div class="inside"><table class="places"><tbody>{"".join(lines)}</tbody></table></div>'
    return f"<p></p><details><summary>The first dropped rows of each reason</summary>{table}</details>"


def _sample(row: ShownRow, number: int) -> str:
    state = row.status.replace(" ", "-")
    note = f'<p class="about">{_escape(row.note)}</p>' if row.note else ""
    cut = f'<p class="about">{row.cut:,} more tokens are not shown.</p>' if row.cut else ""
    record = ""
    if row.record:
        record = (
            f"<details><summary>the row as it was read</summary><pre>{_escape(row.record)}</pre></details>"
        )
    return (
        f'<article class="sample"><div class="title"><code>{_escape(row.where)}</code>'
        f'<span class="state {_escape(state)}">{_escape(row.status)}</span></div>{note}'
        f"{_sequences(row, number)}{_parts(row)}{cut}{record}</article>"
    )


def _sequences(row: ShownRow, number: int) -> str:
    if not row.sequences:
        return ""
    name = f"ids-{number}"
    key = '<span class="key"><span class="t learned">learned</span><span>not learned</span></span>'
    blocks = "".join(
        (f"<h3>{_escape(title)}</h3>" if title else "")
        + f'<pre class="tokens">{"".join(map(_token, tokens))}</pre>'
        for title, tokens in row.sequences
    )
    return (
        f'<input type="checkbox" class="ids" id="{name}">'
        f'<label class="toggle" for="{name}">token ids</label> {key}{blocks}'
    )


def _token(token: ShownToken) -> str:
    ids = " ".join(map(str, token.ids))
    kind = "t learned" if token.weight > 0 else "t"
    weight = (
        ""
        if token.weight in (0, 1)
        else f', weight {token.weight:g}" style="opacity:{_opacity(token.weight)}'
    )
    return f'<span class="{kind}" data-i="{ids}" title="{ids}{weight}">{_escape(token.text)}</span>'


def _opacity(weight: float) -> str:
    return f"{min(1.0, 0.4 + 0.6 * weight):.2f}"


def _parts(row: ShownRow) -> str:
    inside = "".join(f"<h3>{_escape(name)}</h3><pre>{_escape(text)}</pre>" for name, text in row.parts)
    return f'<div class="parts">{inside}</div>' if inside else ""
