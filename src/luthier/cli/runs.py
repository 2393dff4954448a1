"""`luthier runs`: what was run, how it went, and whether its files are still what the run wrote."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from luthier.runs.registry import Difference, RunSummary

app = typer.Typer(
    help="List, show, compare and verify runs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Root = Annotated[str, typer.Option("--root", help="Folder that holds the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Name = Annotated[str, typer.Argument(help="Name of a run, or the path of its folder.", show_default=False)]
Names = Annotated[
    list[str],
    typer.Argument(help="Names of runs, or paths of their folders.", show_default=False, metavar="NAME..."),
]

_STYLES = {"done": "green", "running": "cyan", "interrupted": "yellow"}


@app.command("list")
def list_command(root: Root = "runs", as_json: AsJson = False) -> None:
    """All runs, the newest first."""
    from luthier.runs.registry import list_runs

    runs = list_runs(root)
    if as_json:
        _print_json([_plain(run) for run in runs])
        return
    console = _console()
    if not runs:
        console.print(
            f"No runs in {root}. `luthier train run.yaml` makes one; --root says where to look.", markup=False
        )
        return
    console.print(_overview(runs, console.width))
    for run in runs:
        if run.state in ("broken", "failed") and run.message:
            console.print(f"{run.name}: {run.message}", markup=False, soft_wrap=True)


@app.command("show")
def show_command(name: Name, root: Root = "runs", as_json: AsJson = False) -> None:
    """One run: state, results and where its files are."""
    from luthier.runs.registry import find_run, summarize

    folder = find_run(root, name)
    run = summarize(folder.path)
    if as_json:
        _print_json(_plain(run))
        return
    table = _grid()
    for label, value in _facts(run):
        table.add_row(label, value)
    for label, path in (("report", folder.report), ("adapter", folder.adapter), ("model", folder.model)):
        if path.exists():
            table.add_row(label, str(path))
    steps = folder.saved_steps()
    if steps:
        table.add_row("checkpoints", ", ".join(f"step {step}" for step in steps))
    _console().print(table)


@app.command("compare")
def compare_command(names: Names, root: Root = "runs", as_json: AsJson = False) -> None:
    """Where the configs of two or more runs differ, and their results side by side."""
    from luthier.errors import ConfigError
    from luthier.runs.registry import compare, find_run

    if len(names) < 2:
        raise ConfigError(f"A comparison needs two runs or more; only {names[0]} is given. Add another name.")
    folders = [find_run(root, name) for name in names]
    rows = compare(folders)
    heads = [folder.name for folder in folders]
    if as_json:
        values = [dict(zip(heads, row.values, strict=True)) for row in rows]
        _print_json(
            [{"section": r.section, "key": r.key, "values": v} for r, v in zip(rows, values, strict=True)]
        )
        return
    _console().print(_comparison(heads, rows))


@app.command("report")
def report_command(name: Name, root: Root = "runs") -> None:
    """Write the report of a run anew and print its path."""
    from luthier.runs.registry import find_run
    from luthier.runs.report import write_report

    typer.echo(write_report(find_run(root, name)))


@app.command("verify")
def verify_command(name: Name, root: Root = "runs") -> None:
    """Check that the chain of events is whole and the files are what the run wrote. Exits with 1 if not."""
    from luthier.errors import RunError
    from luthier.runs.audit import read_audit, verify_run
    from luthier.runs.registry import find_run

    folder = find_run(root, name)
    problems = verify_run(folder.path)
    if problems:
        raise RunError(
            "\n".join([f"{folder.name} is not as the run left it:", *(f"- {text}" for text in problems)])
        )
    events = read_audit(folder.audit)
    last = events[-1]["hash"] if events else ""
    typer.echo(f"{folder.name}: {len(events)} events, all as they were written. Last hash: {last}")


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def _grid() -> "Table":
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _overview(runs: "list[RunSummary]", width: int) -> "Table":
    """A table as wide as the terminal lets it be: what matters less goes first."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = [
        ("name", 0),
        ("state", 0),
        ("steps", 0),
        ("loss", 0),
        ("eval", 60),
        ("model", 80),
        ("tokens/s", 100),
    ]
    columns += [("started", 120), ("took", 120)]
    shown = [name for name, least in columns if width >= least]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in shown:
        right = name in ("steps", "loss", "eval", "tokens/s", "took")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name == "state")
    for run in runs:
        cells = {label: Text(value) for label, value in _facts(run)}
        cells["name"] = Text(run.name)
        cells["state"] = Text(run.state, style=_STYLES.get(run.state, "red"))
        table.add_row(*(cells.get(name, Text("-")) for name in shown))
    return table


def _facts(run: "RunSummary") -> list[tuple[str, str]]:
    """What is known about a run, as label and text."""
    from datetime import datetime

    from luthier.runs.figures import duration, show

    facts: list[tuple[str, str | None]] = [
        ("name", run.name),
        ("state", run.state),
        ("message", run.message or None),
        ("method", run.method),
        ("model", run.model),
        ("steps", f"{run.step}/{run.num_steps}" if run.num_steps else str(run.step)),
        ("loss", None if run.loss is None else show("loss", run.loss)),
        ("eval", None if run.best_eval_loss is None else show("loss", run.best_eval_loss)),
        (
            "tokens/s",
            None if run.tokens_per_second is None else show("tokens_per_second", run.tokens_per_second),
        ),
        ("started", None if run.started is None else f"{datetime.fromtimestamp(run.started):%Y-%m-%d %H:%M}"),
        ("took", None if run.seconds is None else duration(run.seconds)),
        ("folder", str(run.path)),
    ]
    return [(label, value) for label, value in facts if value is not None]


def _comparison(heads: list[str], rows: "list[Difference]") -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for head in heads:
        table.add_column(Text(head), overflow="fold")
    for index, row in enumerate(rows):
        last = index + 1 < len(rows) and rows[index + 1].section != row.section
        table.add_row(Text(row.key), *(Text(_cell(row, value)) for value in row.values), end_section=last)
    return table


def _cell(row: "Difference", value: Any) -> str:
    from luthier.runs.figures import duration, show

    if value is None:
        return "-"
    if row.section == "config":
        return str(value)  # in full: shortened numbers could look the same
    if row.key == "seconds":
        return duration(value)
    if isinstance(value, float):
        return show("tokens_per_second" if row.key == "tokens/s" else row.key, value)
    return str(value)


def _plain(run: "RunSummary") -> dict[str, Any]:
    from dataclasses import asdict

    return {name: str(value) if name == "path" else value for name, value in asdict(run).items()}


def _print_json(content: Any) -> None:
    import json

    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, default=str))
