"""What became of every input row, as an HTML table: `ledger.json` for the eye.

A ledger is `{"read": n, "kept": n, "truncated": n, "dropped": n, "set_aside": n, "reasons": {reason: n, …}}`;
`dropped` may be the reasons themselves, and `set_aside` says how many were dropped on purpose. A file may hold
several ledgers by name, at any depth: `{"train": {…}, "eval": {…}}`.
"""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FATES = ("kept", "truncated", "dropped")


def ledger_table(content: dict[str, Any]) -> str:
    """The ledgers as one HTML table; a note where there is none."""
    ledgers = list(_ledgers("", content))
    if not ledgers:
        return '<p class="none">ledger.json was not written yet.</p>'
    bodies = "".join(_body(name, ledger) for name, ledger in ledgers)
    head = '<thead><tr><th>rows</th><th class="number">number</th><th class="number">share</th></tr></thead>'
    return f'<div class="box"><table>{head}{bodies}</table></div>'


def _ledgers(name: str, content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(content, dict):
        return
    if "kept" in content:
        yield name, content
        return
    for key, inner in content.items():
        yield from _ledgers(f"{name} {key}".strip(), inner)


def _body(name: str, ledger: dict[str, Any]) -> str:
    counts = {fate: _count(ledger.get(fate)) for fate in _FATES}
    read = _count(ledger["read"]) if "read" in ledger else sum(counts.values())
    rows = [_row(f"read from {name}" if name else "read", read, read)]
    for fate in _FATES:
        rows.append(_row(fate, counts[fate], read))
        on_purpose = _count(ledger.get("set_aside")) if fate == "dropped" else 0
        if on_purpose:
            rows.append(_row("of these on purpose", on_purpose, read, inner=True))
        reasons = ledger.get("reasons") if fate == "dropped" else None
        reasons = ledger[fate] if isinstance(ledger.get(fate), dict) else reasons
        if isinstance(reasons, dict):
            rows += [
                _row(str(reason), _count(number), read, inner=True) for reason, number in reasons.items()
            ]
    tokens = ledger.get("tokens")
    if isinstance(tokens, dict) and tokens:
        rows += _tokens(tokens)
    sum_of_fates = sum(counts.values())
    if sum_of_fates != read:
        note = f"{read:,} rows were read, but {sum_of_fates:,} are accounted for."
        rows.append(f'<tr><td colspan="3" class="warning">{note}</td></tr>')
    return f"<tbody>{''.join(rows)}</tbody>"


def _tokens(tokens: dict[str, Any]) -> list[str]:
    """Tokens by data set, with the share of each."""
    total = _count(tokens)
    sets = [_row(Path(name).name, _count(number), total, inner=True) for name, number in tokens.items()]
    return [_row("tokens", total, total), *(sets if len(sets) > 1 else [])]


def _row(label: str, number: int, of: int, *, inner: bool = False) -> str:
    share = f"{100 * number / of:.1f} %" if of else "-"
    kind = ' class="inner"' if inner else ""
    return (
        f'<tr><td{kind}>{html.escape(label)}</td><td class="number">{number:,}</td>'
        f'<td class="number">{share}</td></tr>'
    )


def _count(value: Any) -> int:
    """A number of rows; the sum where they are given by reason."""
    if isinstance(value, dict):
        return sum(_count(inner) for inner in value.values())
    if isinstance(value, list):
        return len(value)
    return value if isinstance(value, int) else 0
