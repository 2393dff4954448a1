"""From files to tokens: read, convert, render, tokenise, and account for every row."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data import cache
from luthier.data.batch import Example, Segment
from luthier.data.chat import ChatTemplate, Encoded, Rendered
from luthier.data.conversation import Conversation
from luthier.data.detect import Format, detect_table
from luthier.data.ledger import Ledger, Status
from luthier.data.overlong import Overlong, without_oldest
from luthier.data.sources import Row, list_files, read_rows
from luthier.errors import DataError, RowRefused

_CHUNK_ROWS = 256
_SECONDS_BETWEEN_REPORTS = 2.0


@dataclass(frozen=True)
class PreparedRow:
    """A row with what became of it."""

    row: Row
    status: Status
    reason: str | None
    """Why it was dropped, or what was taken from it."""
    encoded: Encoded | None
    """Its tokens, unless it was dropped or no model was asked."""


class TokenDataset:
    """The rows that can be learned from, as flat arrays, and the account of all that were read."""

    def __init__(self, arrays: cache.Arrays, files: Sequence[str], ledger: Ledger, notes: Sequence[str] = ()):
        self._ids, self._targets, self._offsets = arrays["ids"], arrays["targets"], arrays["offsets"]
        self._rows, self._lines, self._file_of = arrays["rows"], arrays["lines"], arrays["file_of"]
        self._files = list(files)
        self.ledger = ledger
        self.notes = tuple(notes)
        """What a person should be told once."""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self._offsets)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return len(self._ids)

    @property
    def num_targets(self) -> int:
        """Tokens that are learned."""
        return int(np.count_nonzero(self._targets))

    def example(self, index: int) -> Example:
        """One row, as a single segment."""
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        weights = self._targets[start:end].astype(np.float32)
        return Example((Segment(np.asarray(self._ids[start:end]), weights),), row=int(self._rows[index]))

    def where(self, index: int) -> str:
        """The `file:line` that a row was read from."""
        return f"{self._files[int(self._file_of[index])]}:{int(self._lines[index])}"

    def locate(self, row: int) -> str:
        """The `file:line` of the row whose examples carry this number."""
        return self.where(int(np.searchsorted(self._rows, row)))


def prepare(
    paths: Sequence[str | Path],
    template: ChatTemplate,
    *,
    max_length: int,
    overlong: Overlong = "drop",
    max_drop_fraction: float = 0.01,
    cache_folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> TokenDataset:
    """The rows of the files as tokens, read from the cache if they are there.

    Args:
        paths: files and folders.
        template: the model's chat template with its tokenizer.
        max_length: longest row in tokens.
        overlong: what to do with longer rows.
        max_drop_fraction: share of the rows that may be unusable.
        cache_folder: where token caches are kept; None for no cache.
        progress: called now and then with the number of rows read.

    Raises:
        DataError: if a file cannot be read, the template cannot be used, or too few rows can.
    """
    files = list_files(paths)
    entry = None
    if cache_folder is not None:
        entry = cache_folder / _key(files, template, max_length, overlong)
        if found := cache.load(entry):
            arrays, facts = found
            return _checked(arrays, files, Ledger.from_json(facts["ledger"]), template, max_drop_fraction)
    rows = _reported(read_rows(files), progress)
    arrays, ledger = _collect(encode_rows(rows, template, max_length, overlong), files)
    notes = _save(entry, arrays, ledger) if entry is not None else []
    return _checked(arrays, files, ledger, template, max_drop_fraction, notes)


def encode_rows(
    rows: Iterable[Row], template: ChatTemplate, max_length: int, overlong: Overlong
) -> Iterator[PreparedRow]:
    """Every row in order with its tokens, or the reason why it has none.

    Raises:
        DataError: if a table has no known format, the template cannot be used, or a row is too long and
            `overlong` is "error".
    """
    for chunk, formats in _chunks(rows):
        yield from _encode_chunk(chunk, formats, template, max_length, overlong)


def convert_rows(rows: Iterable[Row]) -> Iterator[PreparedRow]:
    """Every row in order as far as it can be judged without a model. Raises DataError as above."""
    for chunk, formats in _chunks(rows):
        for row in chunk:
            conversation = _convert(row, formats)
            if isinstance(conversation, RowRefused):
                yield PreparedRow(row, "dropped", str(conversation), None)
            else:
                yield PreparedRow(row, "kept", None, None)


def _chunks(rows: Iterable[Row]) -> Iterator[tuple[list[Row], dict[str, Format]]]:
    """The rows in portions, with the format of every file in them."""
    formats: dict[str, Format] = {}
    for file, own in groupby(rows, key=lambda row: row.file):
        while chunk := list(islice(own, _CHUNK_ROWS)):
            records = [row.record for row in chunk if row.record is not None]
            if records and file not in formats:
                formats[file] = detect_table(records, file)
            yield chunk, formats


def _encode_chunk(
    chunk: Sequence[Row],
    formats: dict[str, Format],
    template: ChatTemplate,
    max_length: int,
    overlong: Overlong,
) -> Iterator[PreparedRow]:
    rendered = [_render(row, formats, template) for row in chunk]
    tokens = iter(template.encode_rendered([one[1] for one in rendered if not isinstance(one, RowRefused)]))
    for row, one in zip(chunk, rendered, strict=True):
        if isinstance(one, RowRefused):
            yield PreparedRow(row, "dropped", str(one), None)
            continue
        encoded = next(tokens)
        if isinstance(encoded, RowRefused):
            yield PreparedRow(row, "dropped", str(encoded), None)
        elif len(encoded.ids) <= max_length:
            yield PreparedRow(row, "kept", None, encoded)
        else:
            yield _shorten(row, one[0], len(encoded.ids), template, max_length, overlong)


def _render(
    row: Row, formats: dict[str, Format], template: ChatTemplate
) -> tuple[Conversation, Rendered] | RowRefused:
    conversation = _convert(row, formats)
    if isinstance(conversation, RowRefused):
        return conversation
    try:
        return conversation, template.render(conversation)
    except RowRefused as refusal:
        return refusal


def _convert(row: Row, formats: dict[str, Format]) -> Conversation | RowRefused:
    if row.record is None:
        return RowRefused(row.fault or "the row cannot be read")
    try:
        return formats[row.file].convert(row.record)
    except RowRefused as refusal:
        return refusal


def _shorten(
    row: Row,
    conversation: Conversation,
    length: int,
    template: ChatTemplate,
    max_length: int,
    overlong: Overlong,
) -> PreparedRow:
    if overlong == "error":
        raise DataError(
            f"{row.where} has {length} tokens, more than the {max_length} of data.max_length; "
            "raise it, or set data.overlong to drop or truncate_oldest_turns"
        )
    reason = f"the row has {length} tokens, more than the {max_length} of data.max_length"
    if overlong == "drop":
        return PreparedRow(row, "dropped", reason, None)
    try:
        encoded, removed = without_oldest(conversation, max_length, template.encode)
    except RowRefused as refusal:
        return PreparedRow(row, "dropped", str(refusal), None)
    return PreparedRow(row, "truncated", f"{reason}; its {removed} oldest exchanges are left out", encoded)


def _collect(prepared: Iterable[PreparedRow], files: Sequence[Path]) -> tuple[cache.Arrays, Ledger]:
    ledger = Ledger()
    number_of = {str(file): number for number, file in enumerate(files)}
    ids: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    targets: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
    places: list[tuple[int, int, int]] = []
    for one in prepared:
        ledger.add(one.status, one.row.where, one.reason)
        if one.encoded is not None:
            ledger.left_out += one.encoded.left_out
            ids.append(one.encoded.ids)
            targets.append(one.encoded.targets.astype(np.uint8))
            places.append((one.row.number, one.row.line, number_of[one.row.file]))
    columns = np.array(places, dtype=np.int64).reshape(len(places), 3).T
    offsets = np.cumsum([len(part) for part in ids], dtype=np.int64)
    arrays: cache.Arrays = {
        "ids": np.concatenate(ids),
        "targets": np.concatenate(targets),
        "offsets": offsets,
    }
    return arrays | dict(zip(("rows", "lines", "file_of"), columns, strict=True)), ledger


def _checked(
    arrays: cache.Arrays,
    files: Sequence[Path],
    ledger: Ledger,
    template: ChatTemplate,
    max_drop_fraction: float,
    notes: Sequence[str] = (),
) -> TokenDataset:
    ledger.check(max_drop_fraction)
    if not template.closes_turns:
        notes = [
            *notes,
            "the chat template ends answers without a token of their own, so when to stop is not learned",
        ]
    return TokenDataset(arrays, [str(file) for file in files], ledger, notes)


def _save(entry: Path, arrays: cache.Arrays, ledger: Ledger) -> list[str]:
    """Keeps the tokens. A cache that cannot be written costs only time, so it does not stop the run."""
    try:
        cache.save(entry, arrays, {"ledger": ledger.to_json()})
    except OSError as fault:
        return [f"the tokens could not be kept in {entry.parent} ({fault.strerror or fault})"]
    return []


def _key(files: Sequence[Path], template: ChatTemplate, max_length: int, overlong: Overlong) -> str:
    """The name of these rows' tokens. The names of the files count too: rows are known by file and line."""
    tokenizer: Any = template.tokenizer
    settings = {
        "files": [str(file) for file in files],
        "max_length": max_length,
        "overlong": overlong,
        "template_args": template.template_args,
        "special_tokens": tokenizer.special_tokens_map,
        "date": date.today().isoformat() if "strftime_now" in template.source else None,
    }
    parts = [
        json.dumps(settings, sort_keys=True, default=repr),
        template.source,
        tokenizer.backend_tokenizer.to_str(),
    ]
    try:
        return cache.cache_key(files, parts)
    except OSError as fault:
        raise DataError(f"{fault.filename} cannot be read: {fault.strerror}") from fault


def _reported(rows: Iterator[Row], progress: Callable[[int], None] | None) -> Iterator[Row]:
    """The same rows, with a report every two seconds."""
    reported = time.monotonic()
    for row in rows:
        yield row
        if progress is not None and time.monotonic() - reported >= _SECONDS_BETWEEN_REPORTS:
            progress(row.number + 1)
            reported = time.monotonic()
