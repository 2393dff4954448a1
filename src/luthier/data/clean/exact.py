"""Rows that say exactly what an earlier one said."""

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

    def check(self, content: Content, where: str) -> str | None:
        """Why this row is left out; None if it is the first one to say this, and remembered from now on."""
        key, again = identity(content), self._places.is_unlike_the_last(where)
        place = self._seen.get(key, self._before.get(key))
        if place is not None:
            if again and place == self._places.number(where):  # the row itself, once more
                return None
            return f"the row says the same as '{self._places.where(place)}' (data.clean.exact_duplicates)"
        if len(self._seen) >= self.limit:
            self.forgot = self.forgot or bool(self._before)
            self._seen, self._before = {}, self._seen
        self._seen[key] = self._places.number(where)
        return None

    def state(self) -> State:
        """What is remembered."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, table in (("seen", self._seen), ("before", self._before)):
            arrays[f"{name}_keys"] = np.fromiter(table.keys(), np.uint64, len(table))
            arrays[f"{name}_places"] = np.fromiter(table.values(), np.int64, len(table))
        return State(arrays, {"files": self._places.state(), "forgot": self.forgot})

    def restore(self, state: State) -> None:
        """Goes on where `state` was taken."""
        self._seen, self._before = (
            dict(
                zip(
                    state.arrays[f"{name}_keys"].tolist(),
                    state.arrays[f"{name}_places"].tolist(),
                    strict=True,
                )
            )
            for name in ("seen", "before")
        )
        self._places, self.forgot = Places.from_state(state.facts["files"]), state.facts["forgot"]
