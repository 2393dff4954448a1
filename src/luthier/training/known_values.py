"""What a frozen model says of fixed rows, made once and kept on disk: a reference's or a teacher's numbers.

The model does not move and the rows do not change, so neither does what it says of them. That is made before the
first step, in packs of their own that depend on nothing but the rows, and kept under a name that says weights, way of
computing, question and tokens (`weights_key`, `Asked.key`, `survey`). Part after part is written down, so that an
interrupted pass goes on where it was. What is found on disk is compared with the model on a random 1 % of the rows
before it is believed.

Packed in another way a row's numbers differ in the last bits, as in any change of the micro-batches.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.data import cache
from luthier.data.batch import collate
from luthier.data.known import WithGiven, survey
from luthier.data.loader import Dataset
from luthier.data.pack import pack
from luthier.data.sharing import share_prefixes
from luthier.models.weights_key import weights_key
from luthier.parallel.cluster import Cluster
from luthier.training.asked import Asked, Values
from luthier.training.known_parts import Parts

PACK_TOKENS = 2048
PARTS = 512
"""Of a large dataset; each has at least `LEAST_PACKS` packs."""
LEAST_PACKS = 16
LEAST_CHECKED = 8
"""Rows that are compared, if 1 % are fewer."""
_SECONDS_BETWEEN_REPORTS = 10.0
_FILE = "values"
Packs = Sequence[NDArray[np.int64]]


class KnownValues:
    """Makes what a model says of rows, as it is now, or takes it from disk.

    Args:
        asked: the model, and what it is asked.
        cluster: the ranks that share the work; the main one has the files.
        say: told what happens.
        folder: where it is kept.
    """

    def __init__(self, asked: Asked, cluster: Cluster, say: Callable[[str], None], folder: Path):
        self.asked, self.cluster, self.say, self.folder = asked, cluster, say, folder
        self.policy = asked.policy
        self.device = next(self.policy.parameters()).device
        self._weights = weights_key(self.policy)

    def __call__(self, dataset: Dataset) -> WithGiven:
        """The rows with what the model says of each. Every rank calls it."""
        tokens, ends = survey(dataset)
        name = f"{self._weights}{self.asked.key}:{tokens}"
        entry = self.folder / hashlib.sha256(name.encode()).hexdigest()[:32]
        shape = (int(ends[-1]) if len(ends) else 0, *self.asked.width)
        values, fresh = self._everywhere(entry, self._found(entry, shape)), False
        while True:
            if values is None:
                made, fresh = self._made(dataset, ends, entry)
                values = self._everywhere(entry, made)
            assert values is not None
            known = WithGiven(dataset, self.asked.name, values, ends)
            if fresh or self._agrees(known):
                return known
            if self.cluster.is_main:
                shutil.rmtree(entry, ignore_errors=True)
            values = None

    def _found(self, entry: Path, shape: tuple[int, ...]) -> Values | None:
        """What the main rank finds on its disk."""
        found = cache.load(entry) if self.cluster.is_main else None
        values = found[0].get(_FILE) if found is not None else None
        return values if values is not None and values.shape == shape else None

    def _everywhere(self, entry: Path, values: Values | None) -> Values | None:
        """What the main rank has, on every rank: mapped from disk by those that see the same file, else sent."""
        there, mark = self.cluster.gather((values is not None, _mark(entry)))[0]
        if not there:
            return None
        if not self.cluster.is_main and mark is not None and _mark(entry) == mark:
            found = cache.load(entry)
            values = found[0][_FILE] if found is not None else None
        if any(self.cluster.gather(values is None)):
            sent = self.cluster.gather(np.asarray(values) if self.cluster.is_main else None)[0]
            values = sent if values is None else values
        return values

    def _agrees(self, known: WithGiven) -> bool:
        """Whether a live pass over a random 1 % of the rows gives what is known; says how it came out."""
        num_rows, asked = len(known.ends), self.asked
        count = min(num_rows, max(LEAST_CHECKED, num_rows // 100))
        drawn = np.random.default_rng().permutation(num_rows)[:count].tolist()
        rows = self.cluster.gather(drawn)[0]
        eps = max(torch.finfo(p.dtype).eps for p in self.policy.parameters() if p.is_floating_point())
        expected = [known.example(row).given[asked.name] for row in rows]
        # as in tripwire.py: what the dtype rounds to in a whole model, beside the spread of the numbers
        limit = 2 * math.sqrt(eps) * max(1.0, asked.spread(np.concatenate(expected)))
        worst, rank, world = 0.0, self.cluster.rank, self.cluster.world
        for row, numbers in list(zip(rows, expected, strict=True))[rank::world]:
            live = self._values(known.dataset, [np.array([row])])
            if len(live):
                off = asked.off(numbers, live)
                worst = max(worst, off if math.isfinite(off) else math.inf)
        worst = max(self.cluster.gather(worst))
        beside = f"compared with the model on {count} rows: {worst:.1e} off at most, {limit:.1e} allowed"
        if worst <= limit:
            self.say(f"{asked.title} of {num_rows} rows is taken from disk ({beside})")
            return True
        self.say(f"{asked.title} on disk is not believed and made anew ({beside})")
        return False

    def _made(self, dataset: Dataset, ends: NDArray[np.int64], entry: Path) -> tuple[Values | None, bool]:
        """Makes all of it, but for what an interrupted run has made, and keeps it; and whether nothing was there.

        Only the main rank has it then.
        """
        lengths = np.asarray(dataset.lengths)
        packs = list(pack(lengths, max(PACK_TOKENS, int(lengths.max(initial=0)))))
        size = max(LEAST_PACKS, len(packs) // PARTS)
        parts = [packs[first : first + size] for first in range(0, len(packs), size)]
        starts = np.concatenate([[0], ends])
        sizes = [sum(int(starts[i + 1] - starts[i]) for rows in part for i in rows) for part in parts]
        kept = Parts(
            entry.with_name(f"{entry.name}.parts"), sizes, self.asked.width, self.asked.title, self.say
        )
        done = self.cluster.gather(kept.present() if self.cluster.is_main else None)[0]
        if done:
            self.say(f"{self.asked.title} was interrupted; {len(done)} of {len(parts)} parts are there")
        self._make_missing(dataset, parts, done, kept)
        if not self.cluster.is_main:
            return None, not done
        values = self._kept(entry, starts, parts, kept)
        kept.remove()
        return values, not done

    def _make_missing(
        self, dataset: Dataset, parts: Sequence[Packs], done: frozenset[int], kept: Parts
    ) -> None:
        """Makes the parts that are not there, each rank some of them, all of them in step."""
        rank, world = self.cluster.rank, self.cluster.world
        missing = [number for number in range(len(parts)) if number not in done]
        began = told = time.monotonic()
        for first in range(0, len(missing), world):
            mine = missing[first + rank] if first + rank < len(missing) else None
            values = self._values(dataset, parts[mine]) if mine is not None else None
            for number, piece in self.cluster.gather((mine, values)):
                if number is not None and self.cluster.is_main:
                    kept.write(number, piece)
            now, so_far = time.monotonic(), min(first + world, len(missing))
            if now - told >= _SECONDS_BETWEEN_REPORTS and so_far < len(missing):
                told, left = now, (now - began) / so_far * (len(missing) - so_far)
                share = (len(parts) - len(missing) + so_far) / len(parts)
                self.say(f"{self.asked.title}: {share:.0%} of the rows, {left:.0f} s left")
        rows, seconds = len(dataset.lengths), time.monotonic() - began
        if missing:
            self.say(
                f"{self.asked.title} was asked about {rows} rows, once for all epochs, in {seconds:.1f} s"
            )

    def _values(self, dataset: Dataset, packs: Packs) -> Values:
        """What the model says of the rows of these packs, one after the other."""
        pieces = [np.empty((0, *self.asked.width), np.float32)]
        for rows in packs:
            batch = collate([dataset.example(int(i)) for i in rows])
            if self.policy.layout == "packed":
                batch = share_prefixes(batch)
            pieces.append(self.asked.ask(batch.to(self.device)).float().cpu().numpy())
        return np.concatenate(pieces)

    def _kept(self, entry: Path, starts: NDArray[np.int64], parts: Sequence[Packs], kept: Parts) -> Values:
        """All parts in the order of the rows, in one file that is mapped; in memory where none can be written."""
        shape = (int(starts[-1]), *self.asked.width)
        try:
            with cache.new_entry(entry, {}) as folder:
                file = np.lib.format.open_memmap(
                    folder / f"{_FILE}.npy", mode="w+", dtype=np.float32, shape=shape
                )
                for place, piece in _in_rows(starts, parts, kept):
                    file[place] = piece
                file.flush()
        except OSError as fault:  # what cannot be kept costs only time
            self.say(
                f"what {self.asked.title} says could not be kept in {self.folder} ({fault.strerror or fault})"
            )
        values = self._found(entry, shape)
        if values is None:
            values = np.empty(shape, np.float32)
            for place, piece in _in_rows(starts, parts, kept):
                values[place] = piece
        return values


def _in_rows(
    starts: NDArray[np.int64], parts: Sequence[Packs], kept: Parts
) -> Iterator[tuple[slice, Values]]:
    """Where each row's numbers belong, and what they are."""
    for number, part in enumerate(parts):
        piece, place = kept[number], 0
        for row in (int(i) for rows in part for i in rows):
            count = int(starts[row + 1] - starts[row])
            yield slice(int(starts[row]), int(starts[row + 1])), piece[place : place + count]
            place += count


def _mark(entry: Path) -> bytes | None:
    """What tells one whole entry from another of the same name; None if there is none."""
    try:
        return (entry / "meta.json").read_bytes()
    except OSError:
        return None
