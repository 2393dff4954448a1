"""Rows that say nearly what an earlier one said: MinHash over word 5-grams.

datasketch makes the signatures (128 hashes a row). Rows that have a band of hashes in common are candidates; the
share of all their hashes that are equal is an estimate of their Jaccard similarity, with a standard error below
0.045. The tables of bands are our own: datasketch's need several kilobytes a row.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.clean.extra import need
from luthier.data.clean.grams import gram_hashes
from luthier.data.clean.places import Places
from luthier.data.clean.said import facets, identity, voices, words
from luthier.data.clean.state import State
from luthier.data.content import Content

REMEMBERED_ROWS = 400_000
"""At least so many of the latest rows are remembered, and never twice as many (about 2 kilobytes each)."""

_GRAM = 5
_HASHES = 128
_SEED = 1
_RECALL = 0.95
_MOST_CANDIDATES = 64
_KEY_BITS = 60  # as many as a Python integer holds in the least room


class _Generation:
    """Rows that are remembered together, and forgotten together."""

    def __init__(self, bands: int):
        self.bands = bands
        self.places: list[int] = []
        self.signatures = np.empty((1024, _HASHES), np.uint16)
        self._tables: list[dict[int, int | list[int]]] = [{} for _ in range(bands)]

    def candidates(self, keys: list[int]) -> list[int]:
        """Rows that have a band in common with these keys; of very many, some."""
        found: set[int] = set()
        for table, key in zip(self._tables, keys, strict=True):
            rows = table.get(key)
            if rows is not None:
                found.update([rows] if isinstance(rows, int) else rows)
        return sorted(found)

    def add(self, keys: list[int], signature: NDArray[np.uint16], place: int) -> None:
        row = len(self.places)
        self.places.append(place)
        if row == len(self.signatures):
            self.signatures = np.concatenate([self.signatures, np.empty_like(self.signatures)])
        self.signatures[row] = signature
        for table, key in zip(self._tables, keys, strict=True):
            rows = table.get(key)
            if rows is None:
                table[key] = row
            elif isinstance(rows, int):
                table[key] = [rows, row]
            elif len(rows) < _MOST_CANDIDATES:
                rows.append(row)


class NearDuplicates:
    """Remembers the signatures of rows, the latest `limit` of them at least.

    Args:
        threshold: estimated Jaccard similarity from which a row is a duplicate.

    Raises:
        ConfigError: if datasketch is not installed.
    """

    def __init__(self, threshold: float, limit: int = REMEMBERED_ROWS):
        datasketch = need("datasketch", "data.clean.near_duplicates")
        self.threshold, self.limit = threshold, limit
        self.forgot = False
        """Whether early rows were forgotten, so that later ones are no longer compared with them."""
        self._empty = datasketch.MinHash(_HASHES, seed=_SEED, hashfunc=int, scheme="affine32")
        self._bands, self._band_hashes = _bands(threshold)
        self._places = Places()
        self._seen, self._before = self._generation(), self._generation()
        self._total = self._num_new = 0

    def check(self, content: Content, where: str) -> str | None:
        """Why this row is left out; None if none is like it, and it is remembered from now on."""
        signature = self._signature(content)
        keys, again = self._keys(signature), self._places.is_unlike_the_last(where)
        for generation in (self._before, self._seen):
            rows = generation.candidates(keys)
            if not rows:
                continue
            similarity = (generation.signatures[rows] == signature).mean(axis=1)
            alike = np.flatnonzero(similarity >= self.threshold)
            if len(alike):
                own = self._places.number(where)
                if again and any(
                    generation.places[rows[one]] == own for one in alike
                ):  # the row itself, once more
                    return None
                place = self._places.where(generation.places[rows[alike[0]]])
                return (
                    f"the row is {similarity[alike[0]]:.0%} like '{place}' "
                    f"(data.clean.near_duplicates is {self.threshold:g})"
                )
        self._remember(keys, signature, self._places.number(where))
        self._num_new += 1
        return None

    def _remember(self, keys: list[int], signature: NDArray[np.uint16], place: int) -> None:
        if len(self._seen.places) >= self.limit:
            self.forgot = self.forgot or bool(self._before.places)
            self._seen, self._before = self._generation(), self._seen
        self._seen.add(keys, signature, place)
        self._total += 1

    def news(self) -> State:
        """What is new since the last call, as far as it is still remembered."""
        both, since = (self._before, self._seen), -self._num_new or None
        self._num_new = 0
        signatures = [one.signatures[: len(one.places)] for one in both]
        arrays: dict[str, NDArray[Any]] = {
            "places": np.array([place for one in both for place in one.places], np.int64),
            "signatures": np.concatenate(signatures),
        }
        arrays = {name: array[since:] if since else array[:0] for name, array in arrays.items()}
        return State(arrays, self._total, self.limit, {"files": self._places.state(), "forgot": self.forgot})

    def restore(self, state: State) -> None:
        """Goes on behind all that was ever remembered, of which `state` has what is still needed."""
        self._seen, self._before = self._generation(), self._generation()
        for signature, place in zip(state.arrays["signatures"], state.arrays["places"].tolist(), strict=True):
            self._remember(self._keys(signature), signature, place)
        self._places, self.forgot = Places.from_state(state.facts["files"]), state.facts["forgot"]
        self._total, self._num_new = state.total, 0

    def _generation(self) -> _Generation:
        return _Generation(self._bands + 1)

    def _signature(self, content: Content) -> NDArray[np.uint16]:
        """The least hashes of the row's 5-grams, the low half of each, shape [hashes]."""
        salt = facets(content)
        parts = [(f"{salt} {voice}", words(text)) for voice, text in voices(content)]
        grams = np.concatenate([gram_hashes(own, _GRAM, name) for name, own in parts])
        if not len(grams):  # nothing that could be counted: it is like another row only if it is the same
            grams = np.array([identity(content)], dtype=np.uint64)
        made = self._empty.copy()
        made.update_batch((grams >> np.uint64(32)).tolist())
        return made.hashvalues.astype(np.uint16)

    def _keys(self, signature: NDArray[np.uint16]) -> list[int]:
        """A number for each band, and one for the whole signature, so that equal rows always meet."""
        size = self._band_hashes
        parts = [signature[band * size : (band + 1) * size] for band in range(self._bands)]
        return [_key(part) for part in [*parts, signature]]


def _bands(threshold: float) -> tuple[int, int]:
    """How many bands of how many hashes: the longest with which rows at the threshold nearly always meet."""
    fitting = [
        (_HASHES // size, size)
        for size in range(1, _HASHES + 1)
        if 1 - (1 - threshold**size) ** (_HASHES // size) >= _RECALL
    ]
    return fitting[-1] if fitting else (_HASHES, 1)


def _key(part: NDArray[np.uint16]) -> int:
    digest = hashlib.blake2b(part.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - _KEY_BITS)
