"""Rows that say exactly what an earlier one said."""

from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.clean.places import Places
from luthier.data.clean.said import identity
from luthier.data.clean.state import State
from luthier.data.content import Content

REMEMBERED_ROWS = 4_000_000
"""At least so many of the latest different rows are remembered, and never twice as many (about 150 bytes each)."""


class ExactDuplicates:
    """Remembers what rows said, the latest `limit` of them at least."""

    def __init__(self, limit: int = REMEMBERED_ROWS):
        self.limit = limit
        self.forgot = False
        """Whether early rows were forgotten, so that later ones are no longer compared with them."""
        self._places = Places()
        self._seen: dict[int, int] = {}
        self._before: dict[int, int] = {}
        self._total = self._num_new = 0

    def check(self, content: Content, where: str) -> str | None:
        """Why this row is left out; None if it is the first one to say this, and remembered from now on."""
        key, again = identity(content), self._places.is_unlike_the_last(where)
        place = self._seen.get(key, self._before.get(key))
        if place is not None:
            if again and place == self._places.number(where):  # the row itself, once more
                return None
            return f"the row says the same as '{self._places.where(place)}' (data.clean.exact_duplicates)"
        self._remember(key, self._places.number(where))
        self._num_new += 1
        return None

    def _remember(self, key: int, place: int) -> None:
        if len(self._seen) >= self.limit:
            self.forgot = self.forgot or bool(self._before)
            self._seen, self._before = {}, self._seen
        self._seen[key] = place
        self._total += 1

    def news(self) -> State:
        """What is new since the last call, as far as it is still remembered."""
        latest = chain(reversed(self._seen.items()), reversed(self._before.items()))
        items = list(islice(latest, self._num_new))[::-1]
        self._num_new = 0
        arrays: dict[str, NDArray[Any]] = {
            "keys": np.fromiter((key for key, _ in items), np.uint64, len(items)),
            "places": np.fromiter((place for _, place in items), np.int64, len(items)),
        }
        return State(arrays, self._total, self.limit, {"files": self._places.state(), "forgot": self.forgot})

    def restore(self, state: State) -> None:
        """Goes on behind all that was ever remembered, of which `state` has what is still needed."""
        self._seen, self._before = {}, {}
        rows = zip(state.arrays["keys"].tolist(), state.arrays["places"].tolist(), strict=True)
        for key, place in rows:
            self._remember(key, place)
        self._places, self.forgot = Places.from_state(state.facts["files"]), state.facts["forgot"]
        self._total, self._num_new = state.total, 0
