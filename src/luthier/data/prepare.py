"""From files to tokens: all rows at once, each accounted for. What is too much for that goes through `windows.py`."""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from luthier.config.data_section import SetSection
from luthier.data import cache
from luthier.data.alone import alone
from luthier.data.chat import ChatTemplate
from luthier.data.encode import EncodeOptions
from luthier.data.join import Joiner, Origin
from luthier.data.ledger import Ledger
from luthier.data.pipeline import Pipeline, Plan, PreparedRow, Recipe
from luthier.data.room import Room
from luthier.data.sets import of_set
from luthier.data.sources import Row, Source
from luthier.data.sources.files import LocalFile
from luthier.data.store import TableWriter, TokenDataset
from luthier.data.workers import make_encode
from luthier.errors import DataError

_SECONDS_BETWEEN_REPORTS = 2.0
Progress = Callable[[int | str], None]
"""Called now and then with the number of rows read, or with what is waited for."""


def prepare(
    data: Sequence[str | Path | SetSection],
    template: ChatTemplate,
    *,
    max_length: int,
    overlong: str | None = None,
    max_drop_fraction: float = 0.01,
    cache_folder: Path | None = None,
    progress: Progress | None = None,
) -> TokenDataset:
    """The rows of files as tokens, with a template and no further settings.

    Args:
        data: files and folders, or data sets with options of their own.
        template: the model's chat template with its tokenizer.
        max_length: longest row in tokens.
        overlong: what to do with longer rows, as `data.overlong`.
        max_drop_fraction: share of the rows that may be unusable.
        cache_folder: where token caches are kept; None for no cache.
        progress: called now and then with the number of rows read.

    Raises:
        DataError: if a file cannot be read, the template cannot be used, or too few rows can.
    """
    sets = tuple(one if isinstance(one, SetSection) else SetSection(path=str(one)) for one in data)
    options = EncodeOptions(max_length, overlong)
    recipe = Recipe(template.tokenizer, options, template)
    return prepare_plan(
        Plan(sets, recipe), max_drop_fraction=max_drop_fraction, cache_folder=cache_folder, progress=progress
    )


def prepare_plan(
    plan: Plan,
    *,
    max_drop_fraction: float = 0.01,
    cache_folder: Path | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    wanted: Callable[[Row], bool] | None = None,
    first: int | None = None,
) -> TokenDataset:
    """All rows of a plan as tokens, read from the cache if they are there.

    Args:
        plan: which rows, and what becomes of them. It needs a recipe.
        max_drop_fraction: share of the rows that may be unusable.
        cache_folder: where token caches are kept; None for no cache.
        workers: processes that tokenise; 0: this one.
        progress: called now and then with the number of rows read.
        wanted: rows of which it is false are passed over and not counted; without a cache only.
        first: look at the first so many rows only; without a cache only.

    Raises:
        DataError: if a file cannot be read, the template cannot be used, or too few rows can.
    """
    assert (wanted is None and first is None) or cache_folder is None, "the cache has all rows"
    source = plan.open()
    entry = None if cache_folder is None else cache_folder / entry_key(plan, source)
    found = cache.load(entry) if entry is not None else None
    notes: list[str] = []
    if found is None:

        def fill(folder: Path, facts: dict[str, Any]) -> None:
            part = first is not None or wanted is not None
            rows = _reported(_read(source, first, None if part else Room(folder)), progress)
            _fill(plan, filter(wanted, rows) if wanted else rows, workers, folder, facts)

        found, notes = _made(entry, fill, progress or (lambda value: None))
    arrays, facts = found
    dataset = TokenDataset(arrays, facts, [*source.notes, *facts["notes"], *notes])
    dataset.ledger.check(max_drop_fraction)
    return dataset


def entry_key(plan: Plan, source: Source, *, whole: bool = True) -> str:
    """The name of these rows' tokens. The names of the files count too: rows are known by file and line.

    Files elsewhere count by what their place says of them (`stamp`), so that none is fetched for its name alone.
    `whole=False` looks at sizes, times and edges of the files instead of all that is in them.
    """
    files = [Path(file.name) for file in source.data_files if isinstance(file, LocalFile)]
    about = [f"{file.name}:{file.size}" for file in source.data_files]
    about += [file.stamp() for file in source.data_files if not isinstance(file, LocalFile)]
    if source.is_stream:
        about.append(uuid.uuid4().hex)  # what comes through a pipe is never the same again
    try:
        return cache.cache_key(files, [plan.key, *about], whole=whole)
    except OSError as fault:
        raise DataError(f"{fault.filename} cannot be read: {fault.strerror}") from fault


def write_rows(prepared: Iterator[PreparedRow], folder: Path, plan: Plan) -> tuple[dict[str, Any], Ledger]:
    """Writes the examples of a plan's rows into a folder; returns what a `TokenDataset` needs besides, and the
    account.
    """
    table, ledger = TableWriter(folder), Ledger()
    joiner = Joiner(plan.block_length) if plan.block_length else None
    try:
        for one in prepared:
            one.enter(ledger, plan.sets[one.row.set].path)
            for example in one.examples:
                if joiner is None:
                    example = example if len(plan.sets) == 1 else of_set(example, one.row.set)
                    table.add(example, one.row.file, one.row.line, one.content_hash)
                    continue
                for block, origin in joiner.add(example, Origin(example.row, one.row.file, one.row.line)):
                    table.add(block, origin.file, origin.line)
        for block, origin in joiner.rest() if joiner is not None else ():
            table.add(block, origin.file, origin.line)
        return {**table.close(), "ledger": ledger.to_json()}, ledger
    except BaseException:
        table.abandon()
        raise


def _fill(plan: Plan, rows: Iterator[Row], workers: int, folder: Path, facts: dict[str, Any]) -> None:
    assert plan.recipe is not None, "tokens need a recipe"
    encode, close = make_encode(plan.recipe, workers)
    try:
        pipeline = Pipeline(plan, encode)
        found, _ = write_rows(pipeline.prepared(rows), folder, plan)
        told = pipeline.cleaner.notes if pipeline.cleaner is not None else []
        facts |= {**found, "notes": [*pipeline.notes.lines(), *told]}
    finally:
        close()


def _made(
    entry: Path | None, fill: Callable[[Path, dict[str, Any]], None], progress: Progress
) -> tuple[tuple[cache.Arrays, dict[str, Any]], list[str]]:
    """The arrays that `fill` makes: in the cache if that can be written, else in a folder without a name.

    Of several processes with the same cache one makes them, and the others take what it made.
    """
    notes = []
    if entry is not None:
        facts: dict[str, Any] = {}
        try:
            with alone(entry, progress):
                if found := cache.load(entry):
                    return found, []
                with cache.new_entry(entry, facts) as folder:
                    fill(folder, facts)
            if found := cache.load(entry):
                return found, []
            why = "what was written there cannot be read back"
        except OSError as fault:  # a cache that cannot be written costs only time
            why = fault.strerror or str(fault)
        notes.append(f"the tokens could not be kept in {entry.parent} ({why})")
    facts = {}
    try:
        folder = Path(tempfile.mkdtemp(prefix="luthier-tokens-"))
        try:
            fill(folder, facts)
            names = [file.stem for file in folder.glob("*.npy")]
            return (cache.open_arrays(folder, names, map_them=os.name == "posix"), facts), notes
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # what is mapped stays until it is not used any more
    except OSError as fault:
        raise DataError(
            f"the tokens cannot be written to {tempfile.gettempdir()}: {fault.strerror or fault}. "
            "Make room there, name another folder in the environment variable TMPDIR, or set data.streaming: true, "
            "which needs room for a few windows only"
        ) from fault


def _read(source: Source, first: int | None, room: Room | None) -> Iterator[Row]:
    """The rows of the first epoch, as long as there is room for their tokens. Raises OSError if there is not."""
    for number, (row, position) in enumerate(islice(source.rows(), first), start=1):
        yield row
        if room is not None and room.is_due(number):
            room.check(source.progress(position))


def _reported(rows: Iterator[Row], progress: Progress | None) -> Iterator[Row]:
    """The same rows, with a report every two seconds."""
    reported = time.monotonic()
    for number, row in enumerate(rows, start=1):
        yield row
        if progress is not None and time.monotonic() - reported >= _SECONDS_BETWEEN_REPORTS:
            progress(number)
            reported = time.monotonic()
