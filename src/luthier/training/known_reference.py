"""What a reference says of fixed rows, made once and kept on disk.

The reference does not move and the rows do not change, so neither do its log-probabilities. They are made before the
first step, in packs of their own that depend on nothing but the rows, and kept under a name that says weights, way of
computing and tokens (`weights_key`, `survey`). Part after part is written down, so that an interrupted pass goes on
where it was. What is found on disk is compared with the model on a random 1 % of the rows before it is believed.

Packed in another way a row's numbers differ in the last bits, as in any change of the micro-batches.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Sequence
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
from luthier.errors import RunError
from luthier.models.policy import Policy
from luthier.models.reference import GIVEN, frozen_logprobs
from luthier.models.weights_key import weights_key
from luthier.parallel.cluster import Cluster
from luthier.runs.atomic import atomic_write_bytes

Values = NDArray[np.float32]
PACK_TOKENS = 2048
PARTS = 512
"""Of a large dataset; each has at least `LEAST_PACKS` packs."""
LEAST_PACKS = 16
LEAST_CHECKED = 8
"""Rows that are compared, if 1 % are fewer."""
_SECONDS_BETWEEN_REPORTS = 10.0


class KnownReference:
    """Makes what a policy says of rows, as it is now, or takes it from disk.

    Args:
        policy: the reference.
        cluster: the ranks that share the work; the main one has the files.
        say: told what happens.
        folder: where it is kept.
    """

    def __init__(self, policy: Policy, cluster: Cluster, say: Callable[[str], None], folder: Path):
        self.policy, self.cluster, self.say, self.folder = policy, cluster, say, folder
        self.device = next(policy.parameters()).device
        self._weights = weights_key(policy)

    def __call__(self, dataset: Dataset) -> WithGiven:
        """The rows with what the reference says of each. Every rank calls it."""
        tokens, ends = survey(dataset)
        entry = self.folder / hashlib.sha256(f"{self._weights}:{tokens}".encode()).hexdigest()[:32]
        values, fresh = self._found(entry, int(ends[-1]) if len(ends) else 0), False
        while True:
            if values is None:
                values, fresh = self._made(dataset, ends, entry)
            known = WithGiven(dataset, GIVEN, values, ends)
            if fresh or self._agrees(known):
                return known
            if self.cluster.is_main:
                shutil.rmtree(entry, ignore_errors=True)
            values = None

    def _found(self, entry: Path, num_values: int) -> Values | None:
        """What the main rank finds on its disk."""
        found = cache.load(entry) if self.cluster.is_main else None
        values = found[0].get("values") if found is not None else None
        return self._from_main(values if values is not None and values.shape == (num_values,) else None)

    def _from_main(self, values: Values | None) -> Values | None:
        return self.cluster.gather(values if self.cluster.is_main else None)[0]

    def _agrees(self, known: WithGiven) -> bool:
        """Whether a live pass over a random 1 % of the rows gives what is known; says how it came out."""
        num_rows = len(known.ends)
        count = min(num_rows, max(LEAST_CHECKED, num_rows // 100))
        drawn = np.random.default_rng().permutation(num_rows)[:count].tolist()
        rows = self.cluster.gather(drawn)[0]
        eps = max(torch.finfo(p.dtype).eps for p in self.policy.parameters() if p.is_floating_point())
        expected = [known.example(row).given[GIVEN] for row in rows]
        # as in tripwire.py: what the dtype rounds to in a whole model, beside the spread of the numbers
        limit = 2 * math.sqrt(eps) * max(1.0, float(np.concatenate(expected).std()))
        worst, rank, world = 0.0, self.cluster.rank, self.cluster.world
        for row, numbers in list(zip(rows, expected, strict=True))[rank::world]:
            live = self._values(known.dataset, [np.array([row])])
            if len(live):
                off = float(np.sqrt(np.mean((live - numbers) ** 2)))
                worst = max(worst, off if math.isfinite(off) else math.inf)
        worst = max(self.cluster.gather(worst))
        beside = f"compared with the model on {count} rows: {worst:.1e} off at most, {limit:.1e} allowed"
        if worst <= limit:
            self.say(f"the reference of {num_rows} rows is taken from disk ({beside})")
            return True
        self.say(f"the reference on disk is not believed and made anew ({beside})")
        return False

    def _made(self, dataset: Dataset, ends: NDArray[np.int64], entry: Path) -> tuple[Values, bool]:
        """Makes all of it, but for what an interrupted run has made, and keeps it; and whether nothing was there."""
        lengths = np.asarray(dataset.lengths)
        packs = list(pack(lengths, max(PACK_TOKENS, int(lengths.max(initial=0)))))
        size = max(LEAST_PACKS, len(packs) // PARTS)
        parts = [packs[first : first + size] for first in range(0, len(packs), size)]
        starts = np.concatenate([[0], ends])
        sizes = [sum(int(starts[i + 1] - starts[i]) for rows in part for i in rows) for part in parts]
        kept = _Parts(entry.with_name(f"{entry.name}.parts"), sizes, self.say)
        made = self.cluster.gather(kept.load() if self.cluster.is_main else None)[0]
        fresh = not made
        if made:
            self.say(f"the reference was interrupted; {len(made)} of {len(parts)} parts are there")
        self._make_missing(dataset, parts, made, kept)
        values = np.empty(int(starts[-1]), np.float32)
        for number, part in enumerate(parts):
            place = 0
            for row in (int(i) for rows in part for i in rows):
                count = int(starts[row + 1] - starts[row])
                values[starts[row] : starts[row + 1]] = made[number][place : place + count]
                place += count
        if self.cluster.is_main:
            self._keep(values, entry)
            kept.remove()
        return values, fresh

    def _make_missing(
        self,
        dataset: Dataset,
        parts: Sequence[list[NDArray[np.int64]]],
        made: dict[int, Values],
        kept: "_Parts",
    ) -> None:
        """Fills in the parts that are not there, each rank some of them, all of them in step."""
        rank, world = self.cluster.rank, self.cluster.world
        missing = [number for number in range(len(parts)) if number not in made]
        began = told = time.monotonic()
        for first in range(0, len(missing), world):
            mine = missing[first + rank] if first + rank < len(missing) else None
            values = self._values(dataset, parts[mine]) if mine is not None else np.empty(0, np.float32)
            for number, piece in self.cluster.gather((mine, values)):
                if number is not None:
                    made[number] = piece
                    if self.cluster.is_main:
                        kept.write(number, piece)
            now, done = time.monotonic(), min(first + world, len(missing))
            if now - told >= _SECONDS_BETWEEN_REPORTS and done < len(missing):
                told, left = now, (now - began) / done * (len(missing) - done)
                share = (len(parts) - len(missing) + done) / len(parts)
                self.say(f"reference: {share:.0%} of the rows, {left:.0f} s left")
        rows, seconds = len(dataset.lengths), time.monotonic() - began
        if missing:
            self.say(f"the reference was asked about {rows} rows, once for all epochs, in {seconds:.1f} s")

    def _values(self, dataset: Dataset, packs: Sequence[NDArray[np.int64]]) -> Values:
        """What the reference says of the rows of these packs, one after the other."""
        pieces = [np.empty(0, np.float32)]
        for rows in packs:
            batch = collate([dataset.example(int(i)) for i in rows])
            if self.policy.layout == "packed":
                batch = share_prefixes(batch)
            pieces.append(frozen_logprobs(self.policy, batch.to(self.device)).float().cpu().numpy())
        return np.concatenate(pieces)

    def _keep(self, values: Values, entry: Path) -> None:
        try:
            with cache.new_entry(entry, {}) as folder:
                np.save(folder / "values.npy", values)
        except OSError as fault:  # what cannot be kept costs only time
            self.say(
                f"what the reference says could not be kept in {self.folder} ({fault.strerror or fault})"
            )


class _Parts:
    """Parts of a pass that is not finished, one file each.

    Args:
        folder: where they are.
        sizes: how many values each part has.
    """

    def __init__(self, folder: Path, sizes: Sequence[int], say: Callable[[str], None]):
        self.folder, self.sizes, self.say, self.broken = folder, sizes, say, False

    def load(self) -> dict[int, Values]:
        """The parts that are there whole."""
        found = {}
        for number, size in enumerate(self.sizes):
            try:
                content = (self.folder / f"{number:06}").read_bytes()
            except OSError:
                continue
            if len(content) == 4 * size:
                found[number] = np.frombuffer(content, "<f4")
        return found

    def write(self, number: int, values: Values) -> None:
        """Keeps one part, if the disk can be written to."""
        if self.broken:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(self.folder / f"{number:06}", values.astype("<f4").tobytes())
        except (RunError, OSError) as fault:
            self.broken = True
            self.say(f"what the reference says cannot be kept while it is made ({fault})")

    def remove(self) -> None:
        """Removes them, once all are in one file."""
        shutil.rmtree(self.folder, ignore_errors=True)
