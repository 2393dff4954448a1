"""Rows that hold what the evaluation asks: so many words in a row in common with a held-out row."""

from collections.abc import Iterable

import numpy as np

from luthier.data.clean.grams import gram_hashes
from luthier.data.clean.said import voices, words
from luthier.data.content import Content

_SHOWN_WORDS = 12


class EvalOverlap:
    """Knows the runs of `length` words of the held-out texts (about 60 bytes each).

    Held-out texts with fewer words than that cannot be told apart from small talk and are passed over; so are
    rows of token ids, which have no words.
    """

    def __init__(self, length: int, eval_texts: Iterable[str]):
        self.length = length
        self._grams: set[int] = set()
        for text in eval_texts:
            own = words(text)
            if len(own) >= length:
                self._grams.update(gram_hashes(own, length).tolist())

    def check(self, content: Content) -> str | None:
        """Why this row is left out, with the first words in common; None if there are none."""
        for voice, text in voices(content):
            own = words(text)
            if voice == "tokens" or len(own) < self.length or not self._grams:
                continue
            known = np.array([gram in self._grams for gram in gram_hashes(own, self.length).tolist()])
            if known.any():
                first = int(known.argmax())
                shared = own[first : first + self.length]
                shown = " ".join(shared[:_SHOWN_WORDS]) + (" ..." if len(shared) > _SHOWN_WORDS else "")
                return (
                    f"the row has {self.length} words in a row in common with a held-out row "
                    f"(data.clean.eval_overlap): '{shown}'"
                )
        return None
