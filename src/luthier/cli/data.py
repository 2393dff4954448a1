"""`luthier data`: what data files hold, what becomes of each row, what is learned; and canonical files of them."""

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.errors import ConfigError, RunError

if TYPE_CHECKING:
    from luthier.data.pipeline import PreparedRow
    from luthier.data.sources import Row
    from luthier.runs.data_view import DataView

app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)

_ARGUMENTS = typer.Argument(
    metavar="PATH|RUN.YAML [KEY=VALUE]...",
    help="Data files, folders, hub sets, or a run.yaml; and keys to change.",
    show_default=False,
)
_FORMAT = typer.Option(
    "--format", help="The format of the rows, such as sharegpt. Absent: seen from the columns."
)


@app.callback()
def data() -> None:
    """Look at data before training on it, or write it anew in one canonical form."""


@app.command("inspect")
def inspect_command(
    arguments: Annotated[list[str], _ARGUMENTS],
    model: Annotated[str | None, typer.Option(help="Model whose template and tokenizer are used.")] = None,
    format: Annotated[str | None, _FORMAT] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a row.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page (one file) instead of printing.")] = None,
    rows: Annotated[int | None, typer.Option(help="Look at the first so many rows only.", min=1)] = None,
    sample: Annotated[int | None, typer.Option(help="Show so many rows (1; on a page 8).", min=0)] = None,
    row: Annotated[
        list[int] | None, typer.Option(help="Show the row of this number, counted from 0.", min=0)
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids.")] = False,
    duplicates: Annotated[bool, typer.Option("--duplicates", help="Count rows that say the same.")] = False,
) -> None:
    """What becomes of each row: format, ledger, lengths, and samples with what is learned in colour.

    Without a model only what needs no tokenizer is shown. With --json: row, status, reason, ids, targets (1
    where the token is learned). Example: luthier data inspect chats.jsonl --model Qwen/Qwen3-0.6B
    """
    from luthier.cli._data_plan import config_of, look
    from luthier.data.pipeline import Pipeline
    from luthier.data.summary import Summary

    found = look(config_of(arguments, model, format))
    pipeline = Pipeline(found.plan)
    if as_json:
        for one in pipeline.prepared(read for read, _ in found.rows(rows)):
            print(json.dumps(_plain(one), ensure_ascii=False))
        return
    names = [one.path for one in found.plan.sets]
    summary = Summary(
        names, (8 if html else 1) if sample is None else sample, frozenset(row or ()), duplicates
    )
    with _Progress() as progress:
        for one in pipeline.prepared(progress.watched(found.rows(rows))):
            summary.add(one)
    missing = sorted(set(row or ()) - {one.row.number for one in summary.samples})
    if missing:
        raise ConfigError(
            f"there is no row {missing[0]}; {summary.ledger.read:,} rows were read, counted from 0"
        )
    if pipeline.cleaner is not None:
        found.notes += pipeline.cleaner.notes
    from luthier.cli._data_look import view_of

    view = view_of(found, summary, pipeline.notes, rows)
    if html is None:
        from rich.console import Console

        from luthier.cli._data_show import show

        show(view, summary.ledger, Console(soft_wrap=True), ids=ids, has_model=found.tokenizer is not None)
        return
    _write_page(html, view)
    print(f"{summary.ledger.summary().splitlines()[0]}\nwrote {html}")


@app.command("convert")
def convert_command(
    arguments: Annotated[list[str], _ARGUMENTS],
    out: Annotated[str, typer.Option("--out", "-o", help="The file to write, or - for standard output.")],
    format: Annotated[str | None, _FORMAT] = None,
    rows: Annotated[int | None, typer.Option(help="Convert the first so many rows only.", min=1)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Writes rows of any format as JSON lines in one canonical form, checked to say the same.

    Rows that are refused or left out (data.clean) go with their reasons to a file beside it, chats.refused.jsonl
    for chats.jsonl. Example: luthier data convert raw/ -o chats.jsonl data.clean.exact_duplicates=true
    """
    from luthier.cli._data_convert import convert
    from luthier.cli._data_plan import config_of, look

    found = look(config_of(arguments, None, format))
    with _Progress() as progress:
        convert(found, progress.watched(found.rows(rows)), out, force)


class _Progress:
    """How many rows were read, on a terminal's error output while it goes on."""

    def __enter__(self) -> "_Progress":
        from rich.console import Console

        self._status = Console(stderr=True).status("reading rows")
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def watched(self, rows: "Iterable[tuple[Row, float | None]]") -> "Iterator[Row]":
        """The rows; every now and then it is told how many there were."""
        update: Callable[[str], None] = self._status.update
        for number, (row, share) in enumerate(rows, start=1):
            if number % 1000 == 0:
                update(f"{number:,} rows read" + (f" ({share:.0%})" if share is not None else ""))
            yield row


def _plain(one: "PreparedRow") -> dict[str, object]:
    """A row for programs. One that has several sequences (answers, parts) has them in `sequences`."""
    from luthier.data.draft import sequences

    found = [pair for example in one.examples for pair in sequences(example)]
    plain = [{"ids": ids.tolist(), "targets": (weights > 0).astype(int).tolist()} for ids, weights in found]
    single = plain[0] if len(plain) == 1 else {"ids": None, "targets": None}
    result = {"row": one.row.number, "status": one.status, "reason": one.reason, **single}
    return {**result, "sequences": plain} if len(plain) > 1 else result


def _write_page(path: Path, view: "DataView") -> None:
    from luthier.runs.atomic import atomic_write_text
    from luthier.runs.data_page import render_data_page

    if not path.parent.is_dir():
        raise RunError(f"{path} cannot be written: there is no folder {path.parent}")
    written = f"Written by Luthier on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    atomic_write_text(path, render_data_page(view, written))
