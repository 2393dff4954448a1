"""The rows of a run: read at once or as a stream, with some held out, and an account of each."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from luthier.config.data_section import CleanSection, SetSection
from luthier.config.tree import Config
from luthier.cores import usable_cores
from luthier.data.cache import outline
from luthier.data.chat import ChatTemplate
from luthier.data.clean import said
from luthier.data.encode import EncodeOptions
from luthier.data.encode_scored import label_names
from luthier.data.holdout import content_hash, largest_held_out
from luthier.data.ledger import Ledger
from luthier.data.loader import Dataset, hold_out
from luthier.data.pipeline import HeldOut, Pipeline, Plan, Recipe
from luthier.data.prepare import prepare_plan
from luthier.data.registries import expand_registries
from luthier.data.sources import Source, open_source
from luthier.data.sources.files import LocalFile
from luthier.data.store import TokenDataset
from luthier.data.stream import first_with_rows
from luthier.data.windows import SharedWindows, Tell, Windows
from luthier.errors import ConfigError, DataError
from luthier.parallel.cluster import Cluster
from luthier.places import cache_folder
from luthier.runs import audit

Say = Callable[[str], None]
LARGE_BYTES = 200_000_000
"""Local files with more than that are streamed."""
SMALL_BYTES = 20_000_000
"""Files with less than that are tokenised in the training process."""
EVERYTHING = 1 << 40
"""More rows than any window has."""
MOST_WORKERS = 16


@dataclass(frozen=True)
class Data:
    """The rows of a run, tokenised, and what became of each."""

    train: Dataset
    """What is learned from; of a stream the first window that has any."""
    held_out: Dataset | None
    ledgers: dict[str, Ledger]
    notes: tuple[str, ...]
    """What a person should be told once."""
    stream: SharedWindows | None = None
    """The rows to learn from, if they are too many to be prepared at once."""
    labels: tuple[str, ...] = ()
    """Names of the classes, of rows that have one each."""

    def close(self) -> None:
        """Ends what reads ahead."""
        if self.stream is not None:
            self.stream.close()


class DataBuilder:
    """Makes the rows of a run from its config.

    Args:
        config: the whole tree.
        recipe: how contents become tokens.
        reads: the kind of content that the method learns from.
        scratch: a folder of the run for tokens that are not kept.
    """

    def __init__(self, config: Config, recipe: Recipe, reads: str, cluster: Cluster, say: Say, scratch: Path):
        self.config, self.data, self.recipe, self.reads = config, config.data, recipe, reads
        self.cluster, self.say, self.scratch = cluster, say, scratch
        self.notes: list[str] = []

    def build(self) -> Data:
        """Reads, converts and tokenises the rows; of a stream only the first ones.

        Raises:
            LuthierError: if they cannot be read or used.
        """
        if self.reads != "class":
            return self._build()
        labels = self.recipe.options.labels or self._find_labels()
        self.recipe = replace(self.recipe, options=replace(self.recipe.options, labels=labels))
        shown = ", ".join(labels[:12]) + (", …" if len(labels) > 12 else "")
        self.notes.append(f"{len(labels)} classes: {shown}")
        return replace(self._build(), labels=labels)

    def _find_labels(self) -> tuple[str, ...]:
        """The classes that the rows have, in order; of a stream those of its first window."""
        plan, source = self._plan(self.data.all_sets, "data.path")
        if source.is_stream:
            raise ConfigError(
                "rows that come through a pipe come only once, so their classes cannot be found beforehand; name them "
                "in method.labels"
            )
        first = self.data.window_rows if self._streams(source) else None
        rows = (row for row, _ in islice(source.rows(), first))
        judged = Pipeline(replace(plan, recipe=None)).prepared(rows)
        labels = label_names(one.content for one in judged if one.content is not None)
        if len(labels) < 2:
            raise DataError(
                f"data.path: the rows have {len(labels)} classes in `label`"
                f"{' (' + labels[0] + ')' if labels else ''}; to tell classes apart there must be two or more"
            )
        return labels

    def _build(self) -> Data:
        if not self.data.document_mask and self.reads != "conversation":
            raise ConfigError(
                "data.document_mask: false lets rows see each other, which those of method "
                f"{self.config.method.name} must not; leave it out"
            )
        plan, source = self._plan(self.data.all_sets, "data.path")
        streams = self._streams(source)
        evaluated = None
        if self.data.eval_path:
            evaluated = self._all(self._plan(self.data.eval_sets, "data.eval_path")[0])
        if self.data.clean.eval_overlap is not None and evaluated is not None:
            plan = replace(plan, eval_texts=self._texts(self._plan(self.data.eval_sets, "data.eval_path")[0]))
        holds = bool(self.data.eval_rows or self.data.eval_fraction)
        early = not plan.same_every_epoch or self.data.clean.eval_overlap is not None or plan.block_length
        if holds and (streams or early):
            plan, evaluated = self._hold_out_first(plan, source, self.data.window_rows if streams else None)
        if streams or not plan.same_every_epoch:
            return self._stream(plan, source, evaluated, self.data.window_rows if streams else EVERYTHING)
        train = self._all(replace(plan, hash_rows=holds and evaluated is None))
        self.notes += train.notes
        ledgers = {"train": train.ledger} | ({"eval": evaluated.ledger} if evaluated else {})
        if not holds or evaluated is not None:
            return Data(train, evaluated, ledgers, tuple(self.notes))
        kept, held_out = hold_out(train, self._held(train))
        return Data(kept, held_out, ledgers, tuple(self.notes))

    def _plan(self, sets: tuple[SetSection, ...], role: str) -> tuple[Plan, Source]:
        expanded, notes = expand_registries(sets)
        self.notes += [note for note in notes if note not in self.notes]
        training = role == "data.path"
        plan = Plan(
            tuple(expanded),
            self.recipe,
            self.reads,
            clean=self.data.clean if training else CleanSection(),
            mix=self.data.mix if training else "concat",
            temperature=self.data.temperature,
            seed=self.config.seed,
            offline=self.config.offline,
            role=role,
        )
        plan = plan if training else plan.on_their_own()
        return plan, plan.open()

    def _streams(self, source: Source) -> bool:
        if self.data.streaming is not None:
            return self.data.streaming
        return source.is_stream or not source.is_local or (source.size or 0) > LARGE_BYTES

    def _workers(self, source: Source, streams: bool) -> int:
        """Processes of this machine that tokenise."""
        if source.is_stream:
            return 0  # only this process has the pipe
        if self.data.workers is not None:
            return self.data.workers
        small = source.size is not None and source.size < SMALL_BYTES
        return 0 if small and not streams else min(MOST_WORKERS, usable_cores())

    def _all(self, plan: Plan) -> TokenDataset:
        """All rows at once. One rank of each machine goes first, so that the others find the cache."""
        source = plan.open()

        def progress(value: int | str) -> None:
            self.say(f"{plan.role}: {value if isinstance(value, str) else f'{value} rows read'}")

        if self.cluster.local_rank:
            self.cluster.barrier()
        dataset = prepare_plan(
            plan,
            max_drop_fraction=self.data.max_drop_fraction,
            cache_folder=cache_folder("tokens") if self.data.cache and not source.is_stream else None,
            workers=self._workers(source, streams=False),
            progress=progress if self.cluster.is_main else None,
        )
        if not self.cluster.local_rank:
            self.cluster.barrier()
        return dataset

    def _held(self, train: TokenDataset) -> np.ndarray:
        """Which examples are held out, by the hash of what their rows hold."""
        hashes = np.asarray(train.hashes)
        if self.data.eval_fraction:
            held = hashes < self.data.eval_fraction * 2.0**64
            if held.all() or not held.any():
                which = "all" if held.all() else "none"
                raise DataError(
                    f"data.eval_fraction is {self.data.eval_fraction:g}, which holds out {which} of the "
                    f"{train.ledger.usable} rows that can be used; give data.eval_rows or data.eval_path"
                )
            return held
        if self.data.eval_rows >= train.ledger.usable:
            raise DataError(
                f"data.eval_rows is {self.data.eval_rows}, but only {train.ledger.usable} rows can be used; "
                "lower it, so that rows are left to learn from"
            )
        _, first = np.unique(train.row_numbers, return_index=True)
        held = hashes <= np.uint64(largest_held_out(map(int, hashes[first]), self.data.eval_rows))
        if held.all():
            raise DataError(
                f"data.eval_rows is {self.data.eval_rows}, and all rows that can be used say the same, so that "
                "none would be left to learn from; give data.eval_path"
            )
        return held

    def _hold_out_first(self, plan: Plan, source: Source, first: int | None) -> tuple[Plan, TokenDataset]:
        """Chooses what is held out before anything is learned: among the first rows, if there are so many."""
        if source.is_stream:
            raise ConfigError(
                f"rows that come through a pipe cannot be held out by {self._key}, since they come only once; "
                "give data.eval_path"
            )
        among = "" if first is None else f" the first {first} of"
        held = HeldOut(self.data.eval_fraction)
        if self.data.eval_rows:
            records = [row.record for row, _ in islice(source.rows(), first) if row.record is not None]
            hashes = [content_hash(record) for record in records]
            most = largest_held_out(hashes, self.data.eval_rows)
            held = HeldOut(hashes=frozenset(one for one in hashes if one <= most))
            if len(hashes) <= self.data.eval_rows:
                raise DataError(
                    f"data.eval_rows is {self.data.eval_rows}, but there are only {len(hashes)} rows to choose "
                    "from; lower it, so that rows are left to learn from"
                )
        aside = replace(plan, clean=CleanSection()).on_their_own()
        evaluated = prepare_plan(
            aside,
            max_drop_fraction=self.data.max_drop_fraction,
            wanted=lambda row: row.record is not None and held.holds(row.record),
            first=first,
        )
        if first is not None:
            also = "; later rows of that share are left out" if self.data.eval_fraction else ""
            self.notes.append(
                f"streaming: {len(evaluated)} held-out rows are taken from{among} the rows{also}"
            )
        texts = None
        if self.data.clean.eval_overlap is not None:
            texts = self._texts(aside, held, first)
        return replace(plan, held_out=held, eval_texts=texts), evaluated

    @property
    def _key(self) -> str:
        return "data.eval_rows" if self.data.eval_rows else "data.eval_fraction"

    def _texts(self, plan: Plan, held: HeldOut | None = None, first: int | None = None) -> tuple[str, ...]:
        """What held-out rows say."""
        rows = (row for row, _ in islice(plan.open().rows(), first))
        if held is not None:
            rows = (row for row in rows if row.record is not None and held.holds(row.record))
        judged = Pipeline(replace(plan, recipe=None)).prepared(rows)
        return tuple(said(one.content) for one in judged if one.content is not None)

    def _stream(self, plan: Plan, source: Source, evaluated: TokenDataset | None, num_rows: int) -> Data:
        """The rows as a stream; the first window is made now."""
        cluster = self.cluster
        folder, keep = self._place_of_windows(source)
        windows = None
        if cluster.local_rank == 0:
            windows = Windows(
                plan,
                num_rows,
                folder,
                keep=keep,
                workers=self._workers(source, streams=num_rows != EVERYTHING),
                tell=_now_and_then(lambda value: self.say(f"{plan.role}: {_in_words(value)}")),
            )
        shared = SharedWindows(
            windows, cluster.rank - cluster.local_rank, cluster.gather, plan.same_every_epoch
        )
        try:
            first, ledger, notes = first_with_rows(shared, self.data.max_drop_fraction)
        except BaseException:
            shared.close()
            raise
        self.notes += [*source.notes, *notes.lines()]
        ledgers = {"train": ledger} | ({"eval": evaluated.ledger} if evaluated else {})
        return Data(first.dataset, evaluated, ledgers, tuple(self.notes), shared)

    def _place_of_windows(self, source: Source) -> tuple[Path, bool]:
        """Where windows are written, and whether they stay there for the next run."""
        if not self.data.cache or source.is_stream:
            return self.scratch, False
        folder = cache_folder("tokens")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            room = shutil.disk_usage(folder).free
            writable = os.access(folder, os.W_OK)
        except OSError as fault:
            self.notes.append(f"tokens are not kept: {folder} cannot be written ({fault.strerror or fault})")
            return self.scratch, False
        if writable and room > 2 * (source.size or 0):
            return folder, True
        why = f"has only {room / 2**30:.1f} GiB left" if writable else "cannot be written"
        self.notes.append(f"tokens are not kept: {folder} {why}")
        return self.scratch, False


def _in_words(value: int | str) -> str:
    return value if isinstance(value, str) else f"{value} rows of the next window read"


def _now_and_then(tell: Tell, seconds: float = 5.0) -> Tell:
    """Tells at most every few seconds."""
    told = time.monotonic()

    def maybe(value: int | str) -> None:
        nonlocal told
        if time.monotonic() - told >= seconds:
            told = time.monotonic()
            tell(value)

    return maybe


def recipe_of(
    config: Config, tokenizer: PreTrainedTokenizerFast, template: ChatTemplate | None, no_template: str
) -> Recipe:
    """How the contents of rows become tokens in this run."""
    data = config.data
    learn = data.learn if isinstance(data.learn, str) else tuple(data.learn)
    blocks = not data.document_mask
    options = EncodeOptions(config.max_length, data.overlong, learn, data.thinking, in_blocks=blocks)
    return Recipe(tokenizer, options, template, no_template)


def data_hashes(config: Config) -> dict[str, str]:
    """What tells the run's data from other data, by number and name of each file: its SHA-256.

    Of large files it is that of their edges, with size and time of the last change; of files elsewhere the size
    and what their place says of them, so that none is fetched for this.
    """
    sets = expand_registries((*config.data.all_sets, *config.data.eval_sets))[0]
    hashes: dict[str, str] = {}
    source = open_source(sets, offline=config.offline)
    for number, file in enumerate(source.data_files):
        path = Path(file.name)
        if not isinstance(file, LocalFile):
            hashes[f"{number}:{file.name}"] = f"size {file.size}, {file.stamp()}"
        elif (file.size or 0) > LARGE_BYTES:
            hashes[f"{number}:{path.name}"] = f"outline {outline(path)}"
        else:
            hashes[f"{number}:{path.name}"] = audit.hash_file(path)
    return hashes
