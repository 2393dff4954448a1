"""Rows to examples, step by step: convert, adapt to the method, leave out, tokenise. One outcome for every row.

What depends on earlier rows (cleaning, notes) happens here, in order; tokens may be made in other processes.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from luthier.config.data_section import CleanSection, SetSection
from luthier.data.adapt import adapt
from luthier.data.batch import Example
from luthier.data.chat import ChatTemplate
from luthier.data.clean import Cleaner
from luthier.data.content import Content
from luthier.data.convert import convert_row, formats_of
from luthier.data.encode import EncodedRow, EncodeOptions, RowEncoder, RowTooLong
from luthier.data.holdout import content_hash, is_held_out
from luthier.data.ledger import Ledger, Status
from luthier.data.notes import Notes
from luthier.data.sources import Row, Source, open_source
from luthier.errors import DataError, RowRefused, SetAside

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHUNK_ROWS = 256
FIRST_ROWS = 16
"""Rows of a file that show whether it has a known format."""
Outcome = EncodedRow | RowRefused


@dataclass(frozen=True)
class TooLong:
    """In place of a row's tokens: it is too long and that stops the run. A value, so that processes can send it."""

    text: str


Encode = Callable[[Iterable[tuple[str, Sequence[Content]]]], Iterator[list[Outcome | TooLong]]]
"""From portions of contents, each with a name for messages, to what becomes of each; portions stay in order."""


@dataclass(frozen=True)
class Recipe:
    """How contents become tokens, in a form that other processes can be sent."""

    tokenizer: "PreTrainedTokenizerFast"
    options: EncodeOptions
    template: ChatTemplate | None
    no_template: str = ""
    """Without a chat template: what to tell a person who gives conversations."""

    def encoder(self) -> RowEncoder:
        """What turns contents into examples."""
        return RowEncoder(self.tokenizer, self.template, self.options, no_template=self.no_template)


@dataclass(frozen=True)
class HeldOut:
    """Which rows are held out, by the hash of their content."""

    fraction: float = 0.0
    hashes: frozenset[int] = frozenset()

    def holds(self, record: dict[str, Any]) -> bool:
        """Whether a row is held out."""
        if self.fraction and is_held_out(record, self.fraction):
            return True
        return bool(self.hashes) and content_hash(record) in self.hashes


@dataclass(frozen=True)
class Plan:
    """All that decides which rows are read and what becomes of each, in a form that processes can be sent."""

    sets: tuple[SetSection, ...]
    recipe: Recipe | None
    """None: rows are judged as far as that is possible without a model."""
    reads: str = "conversation"
    """The kind of content that the method learns from (`adapt.WANTED`)."""
    clean: CleanSection = field(default_factory=CleanSection)
    eval_texts: tuple[str, ...] | None = None
    """What held-out rows say, where rows that overlap with them are left out."""
    held_out: HeldOut | None = None
    """Rows that are left out because they are for evaluation."""
    hash_rows: bool = False
    """Keep a hash of each row's content."""
    mix: Literal["concat", "first_exhausted", "all_exhausted"] = "concat"
    temperature: float = 1.0
    seed: int = 0
    offline: bool = False
    role: str = "data.path"
    """The key of the config that the rows are named by, for messages."""

    def open(self) -> Source:
        """The rows."""
        return open_source(
            self.sets,
            mix=self.mix,
            temperature=self.temperature,
            seed=self.seed,
            offline=self.offline,
            role=self.role,
        )

    @property
    def block_length(self) -> int | None:
        """Tokens of the blocks that rows are joined into; None: each row stays on its own."""
        options = self.recipe.options if self.recipe is not None else None
        return options.max_length if options is not None and options.in_blocks else None

    def on_their_own(self) -> "Plan":
        """The same rows without being joined."""
        if self.recipe is None:
            return self
        options = replace(self.recipe.options, in_blocks=False)
        return replace(self, recipe=replace(self.recipe, options=options))

    @property
    def same_every_epoch(self) -> bool:
        """Whether every epoch has the same rows in the same order."""
        return self.mix == "concat" and all(one.repeat == 1 and one.rows is None for one in self.sets)

    @property
    def key(self) -> str:
        """Names all that changes what becomes of the rows, besides the rows themselves."""
        values: dict[str, Any] = {
            name: value
            for name, value in vars(self).items()
            if name not in ("recipe", "sets", "clean", "role")
        }
        values |= {"sets": [one.model_dump() for one in self.sets], "clean": self.clean.model_dump()}
        if self.held_out is not None:
            values["held_out"] = [self.held_out.fraction, sorted(self.held_out.hashes)]
        values["recipe"] = self.recipe.encoder().key if self.recipe is not None else None
        return json.dumps(values, sort_keys=True)


@dataclass(frozen=True)
class PreparedRow:
    """A row with what became of it."""

    row: Row
    status: Status
    reason: str | None = None
    """Why it was dropped, or what was taken from it."""
    content: Content | None = None
    encoded: EncodedRow | None = None
    """Its examples, unless it was dropped or no model was asked."""
    set_aside: bool = False
    """It was left out on purpose."""
    content_hash: int = 0

    def enter(self, ledger: Ledger, name: str = "") -> None:
        """Enters it into an account; its tokens under the name of its data set."""
        ledger.add(self.status, self.row.where, self.reason, set_aside=self.set_aside)
        if self.encoded is not None:
            ledger.left_out += self.encoded.left_out
            ledger.tokens[name] += sum(map(len, self.encoded.examples))

    @property
    def examples(self) -> list[Example]:
        """Its examples under the row's number."""
        found = self.encoded.examples if self.encoded is not None else ()
        return [replace(example, row=self.row.number) for example in found]


class Pipeline:
    """Says what becomes of each row.

    Args:
        plan: what is wanted.
        encode: makes the tokens; absent: here, in this process.
        check_files: stop if the first rows of a file have no known format, instead of refusing each row.
    """

    def __init__(self, plan: Plan, encode: Encode | None = None, *, check_files: bool = True):
        self.plan, self.notes = plan, Notes()
        self.check_files, self._checked = check_files, set[str]()
        self._formats = [formats_of(one) for one in plan.sets]
        self._encode = encode
        if encode is None and plan.recipe is not None:
            self._encode = encode_here(plan.recipe)
        cleans = plan.clean != CleanSection()
        self.cleaner = Cleaner(plan.clean, plan.eval_texts) if cleans else None
        """What it has seen so far decides about later rows; None if nothing is to be left out."""

    def take_notes(self) -> Notes:
        """What is to be told about the rows since the last call."""
        notes, self.notes = self.notes, Notes()
        return notes

    def prepared(self, rows: Iterable[Row]) -> Iterator[PreparedRow]:
        """Every row in order with its examples, or the reason why it has none.

        Raises:
            DataError: if the rows of a file have no known format, no row could ever be used, or a row is too long
                and that is an error.
        """
        rows = iter(rows)
        chunks = iter(lambda: self._chunk(list(islice(rows, CHUNK_ROWS))), [])
        if self._encode is None:
            for chunk in chunks:
                yield from chunk
            return
        waiting: deque[list[PreparedRow]] = deque()

        def portions() -> Iterator[tuple[str, list[Content]]]:
            for chunk in chunks:
                waiting.append(chunk)
                contents = [one.content for one in chunk if one.status == "kept" and one.content is not None]
                yield _named(chunk), contents

        for outcomes in self._encode(portions()):
            yield from _joined(waiting.popleft(), outcomes)

    def _chunk(self, rows: Sequence[Row]) -> list[PreparedRow]:
        if self.check_files:
            self._check_files(rows)
        return [self._judge(row) for row in rows]

    def _check_files(self, rows: Sequence[Row]) -> None:
        """Looks at the first rows of files that were not seen before."""
        new = {row.file: row.set for row in rows if row.record is not None and row.file not in self._checked}
        for file, number in new.items():
            records = [row.record for row in rows if row.file == file and row.record is not None]
            if len(records) < FIRST_ROWS and len(rows) == CHUNK_ROWS:
                continue  # too few to judge the file by, and more rows are to come
            self._formats[number].check(records, file)
            self._checked.add(file)

    def _judge(self, row: Row) -> PreparedRow:
        """As far as it goes without tokens."""
        try:
            if row.record is not None and self.plan.held_out and self.plan.held_out.holds(row.record):
                raise SetAside("the row is held out for evaluation")
            content = self._content(row)
            hashed = content_hash(row.record) if row.record is not None and self.plan.hash_rows else 0
        except SetAside as reason:
            return PreparedRow(row, "dropped", str(reason), set_aside=True)
        except RowRefused as reason:
            return PreparedRow(row, "dropped", str(reason))
        if self.cleaner is not None and (reason := self.cleaner.check(content, row.where)):
            return PreparedRow(row, "dropped", reason, content, set_aside=True)
        return PreparedRow(row, "kept", None, content, content_hash=hashed)

    def _content(self, row: Row) -> Content:
        formats, asks = self._formats[row.set], self.plan.reads == "prompt"
        content = convert_row(row, self.plan.sets[row.set], formats, self.notes, keeps=asks)
        return adapt(content, self.plan.reads, self.notes, row.where, formats.rest(row) if asks else None)


def encode_here(recipe: Recipe) -> Encode:
    """Makes the tokens in this process."""
    encoder = recipe.encoder()

    def encode(portions: Iterable[tuple[str, Sequence[Content]]]) -> Iterator[list[Outcome | TooLong]]:
        for _, contents in portions:
            yield encode_portion(encoder, contents)

    return encode


def encode_portion(encoder: RowEncoder, contents: Sequence[Content]) -> list[Outcome | TooLong]:
    """What becomes of each content; after one that is too long, if that is an error, nothing is done."""
    try:
        return list(encoder.encode(contents))
    except RowTooLong as fault:
        return [*[RowRefused("not looked at")] * fault.index, TooLong(str(fault))]


def _named(chunk: Sequence[PreparedRow]) -> str:
    return f"{chunk[0].row.where} to {chunk[-1].row.where}"


def _joined(chunk: Sequence[PreparedRow], outcomes: Sequence[Outcome | TooLong]) -> Iterator[PreparedRow]:
    """The rows of a chunk with their tokens; those that were dropped before have none."""
    for outcome in outcomes:
        if isinstance(outcome, TooLong):
            number = len(outcomes) - 1
            rows = [one.row for one in chunk if one.status == "kept" and one.content is not None]
            raise DataError(f"{rows[number].where}: {outcome.text}")
    left = iter(outcomes)
    for one in chunk:
        if one.status == "dropped":
            yield one
            continue
        outcome = next(left)
        if isinstance(outcome, RowRefused):
            aside = isinstance(outcome, SetAside)
            yield replace(one, status="dropped", reason=str(outcome), set_aside=aside)
        else:
            assert isinstance(outcome, EncodedRow)
            yield replace(one, status=outcome.status, reason=outcome.reason, encoded=outcome)
