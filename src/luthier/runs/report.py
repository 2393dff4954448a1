"""The report of a run: one HTML file that needs nothing else, for a run that is done, running or broken.

Everything that comes from data or a model is escaped. A part that is missing says so; a part that cannot be
read says why, and the rest is shown all the same.
"""

import html
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError
from luthier.runs.atomic import atomic_write_text
from luthier.runs.charts import Curve, chart, smoothed
from luthier.runs.figures import duration, show
from luthier.runs.folder import RunFolder
from luthier.runs.ledger_table import ledger_table
from luthier.runs.metrics import last_value, read_metrics, series
from luthier.runs.registry import RunSummary, summarize, task_metrics
from luthier.runs.report_style import SCRIPT, STYLE
from luthier.runs.samples import Sample, When, read_samples

Rows = list[dict[str, Any]]
_escape = html.escape


def write_report(folder: RunFolder) -> Path:
    """Writes `report.html` anew from what the run folder holds now, and returns its path.

    Raises RunError where the disk is full, read-only or may not be written to.
    """
    atomic_write_text(folder.report, render_report(folder))
    return folder.report


def render_report(folder: RunFolder) -> str:
    """The report as text. Never fails over the content of the run's files."""
    summary = summarize(folder.path)
    try:
        rows = read_metrics(folder.metrics)
    except (LuthierError, OSError):
        rows = []  # the summary is `broken` then and says why
    parts = [
        _headline(summary),
        _tiles(summary, rows),
        _section("Curves", lambda: _charts(rows)),
        _section("Answers before and after", lambda: _samples(folder)),
        _section("Data", lambda: ledger_table(_read_json(folder.ledger))),
        _section("Config", lambda: _config(folder)),
        _section("Environment", lambda: _environment(folder)),
    ]
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(summary.name)} - Luthier</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + f"\n<footer>Written by Luthier on {now}.</footer>\n</main>\n"
        + f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(title: str, content: Callable[[], str]) -> str:
    try:
        inside = content()
    except (LuthierError, OSError, ValueError) as error:
        inside = f'<p class="warning">{_escape(str(error))}</p>'
    return f"<section><h2>{_escape(title)}</h2>{inside}</section>"


def _headline(run: RunSummary) -> str:
    facts = [f"{run.method} of {run.model}"] if run.model else []
    if run.started:
        facts.append(f"started {datetime.fromtimestamp(run.started, UTC):%Y-%m-%d %H:%M} UTC")
    if run.seconds:
        facts.append(f"worked for {duration(run.seconds)}")
    note = f'<p class="warning">{_escape(run.message)}</p>' if run.message else ""
    return (
        f'<header><div class="title"><h1>{_escape(run.name)}</h1>'
        f'<span class="state {run.state}">{run.state}</span></div>'
        f'<p class="about">{_escape(" · ".join(facts))}</p>{note}</header>'
    )


def _tiles(run: RunSummary, rows: Rows) -> str:
    before, after = task_metrics(rows, "before"), task_metrics(rows, "after")
    tiles = [_change(name, before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])]
    of = f" <small>of {run.num_steps:,}</small>" if run.num_steps else ""
    tiles.append(_tile("steps", f"{run.step:,}{of}"))
    tokens = last_value(rows, "train", "num_tokens")
    if tokens is None:  # a run of an earlier version
        tokens = sum(value for _, value in series(rows, "train", "tokens") if value is not None)
    for label, name, value in (
        ("training loss", "loss", run.loss),
        ("best evaluation loss", "loss", run.best_eval_loss),
        ("perplexity", "perplexity", last_value(rows, "eval", "perplexity")),
        ("bits per byte", "bits_per_byte", last_value(rows, "eval", "bits_per_byte")),
        ("tokens/s", "tokens_per_second", run.tokens_per_second),
        ("tokens seen", "tokens_per_second", tokens or None),
    ):
        if value is not None:
            tiles.append(_tile(label, show(name, value)))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _change(name: str, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        when = "before" if after is None else "after"
        return _tile(f"{_words(name)} {when}", show(name, before if after is None else after))
    return _tile(_words(name), f"<small>{show(name, before)} &rarr;</small> {show(name, after)}")


def _tile(label: str, value: str) -> str:
    return f'<div class="tile"><span>{_escape(label)}</span><b>{value}</b></div>'


def _charts(rows: Rows) -> str:
    loss = series(rows, "train", "loss")
    smooth = smoothed(loss)
    curves = [Curve("each step", loss, "raw"), Curve("smoothed", smooth, "main")] if smooth else []
    curves = curves or [Curve("training", loss, "main")]
    curves.append(Curve("evaluation", series(rows, "eval", "loss"), "second"))
    charts = [chart("Loss", "loss", curves)]
    for title, name, log in (
        ("Learning rate", "lr", False),
        ("Gradient norm", "grad_norm", None),
        ("Tokens per second", "tokens_per_second", False),
    ):
        charts.append(
            chart(title, name, [Curve(title.lower(), series(rows, "train", name), "main")], log=log)
        )
    return f'<div class="charts">{"".join(charts)}</div>'


def _samples(folder: RunFolder) -> str:
    answers = read_samples(folder.samples)
    if not answers:
        return '<p class="none">No answers were saved. <code>eval.samples</code> says how many to save.</p>'
    return "".join(_sample(pair) for pair in answers)


def _sample(pair: dict[When, Sample]) -> str:
    some = next(iter(pair.values()))
    sides = [(when, pair[when].answer) for when in ("before", "after") if when in pair]
    if some.reference is not None:
        sides.append(("reference", some.reference))
    columns = "".join(
        f'<div class="{kind}"><h3>{kind}</h3><pre>{_escape(text) or "(empty)"}</pre></div>'
        for kind, text in sides
    )
    return (
        f'<article class="sample"><h3>prompt</h3><pre>{_escape(some.prompt)}</pre>'
        f'<div class="sides">{columns}</div></article>'
    )


def _config(folder: RunFolder) -> str:
    text = folder.config.read_text(errors="replace") if folder.config.is_file() else "config.yaml is missing"
    return f"<details open><summary>config.yaml</summary><pre>{_escape(text)}</pre></details>"


def _environment(folder: RunFolder) -> str:
    found = _read_json(folder.environment)
    if not found:
        return '<p class="none">environment.json was not written yet.</p>'
    rows = "".join(
        f"<tr><th>{_escape(_words(name))}</th><td>{_fact(name, found[name])}</td></tr>" for name in found
    )
    table = f'<div class="inside"><table>{rows}</table></div>'
    return f"<details><summary>environment.json</summary>{table}</details>"


def _fact(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, dict):
        return "<br>".join(
            f"{_escape(_words(str(key)))}: {_fact(str(key), inner)}" for key, inner in value.items()
        )
    if isinstance(value, list):
        nested = any(isinstance(item, dict | list) for item in value)
        return ("<br>" if nested else ", ").join(_fact("", item) for item in value)
    return _escape(str(value))


def _words(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty while the file is absent. Raises ValueError for anything else."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} does not hold an object")
    return found
