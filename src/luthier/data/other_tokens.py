"""The same text in the tokens of another model, and which tokens of both begin at the same place.

A document of one model is read by another piece by piece. Special tokens stand for themselves where the other has one
of the same name; the end of text becomes its own, a beginning of text its own or nothing, and any other is read as the
letters it is written in. Between them text is text.

Two tokens that begin at the same place have the same text before them: there both models say what comes next.

    ours     [Dist][illa][tion][ of]
    theirs   [Dis][till][ation][ of]      the first and the last begin at the same place
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from luthier.data.tokens import TokenEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """A document in the other model's tokens."""

    ids: NDArray[np.int32]
    partner: Places
    """For each token of the document the one of `ids` that begins at the same place; -1: none does."""


class OtherTokens:
    """Reads documents of one tokenizer with another.

    Args:
        ours: the tokenizer that made them.
        theirs: that of the model that is to read them.

    Raises:
        DataError: a tokenizer cannot say where its tokens stand in a text.
    """

    def __init__(self, ours: "PreTrainedTokenizerFast", theirs: "PreTrainedTokenizerFast"):
        self._tokenizer = ours
        self._ours, self._theirs = TokenEncoder(ours), TokenEncoder(theirs)
        self._special = _special_tokens(ours, theirs)
        first = theirs("", add_special_tokens=True)["input_ids"]
        self._begin: list[int] = [i for i in first if i == theirs.bos_token_id]  # pyright: ignore[reportGeneralTypeIssues]

    def __call__(self, ids: Sequence[int]) -> Reading:
        """One document, from its first token on."""
        made, partner = list(self._begin), np.full(len(ids), -1, np.int64)
        for start, piece in self._pieces(ids):
            if len(piece) == 1 and piece[0] in self._special:
                other = self._special[piece[0]]
                if made == self._begin and other == self._begin:
                    continue  # a beginning of text that is there already
                partner[start] = len(made) if other else -1
                made += other
                continue
            text = self._decode(piece)
            tokens = self._theirs.encode(text)
            begins, their_begins = self._begins(piece, text), _in_bytes(text, tokens.offsets[:, 0])
            if begins is not None:
                place = np.searchsorted(their_begins, begins).clip(max=max(0, len(their_begins) - 1))
                found = (
                    their_begins[place] == begins if len(their_begins) else np.zeros(len(begins), np.bool_)
                )
                partner[start : start + len(piece)] = np.where(found, len(made) + place, -1)
            made += tokens.ids.tolist()
        return Reading(np.array(made, np.int32), partner)

    def _pieces(self, ids: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """The document cut at special tokens, each with where it begins."""
        start = 0
        for place, token in enumerate(ids):
            if token in self._special:
                if place > start:
                    yield start, list(ids[start:place])
                yield place, [token]
                start = place + 1
        if start < len(ids):
            yield start, list(ids[start:])

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _begins(self, ids: Sequence[int], text: str) -> Places | None:
        """The bytes of the text at which our tokens begin; None where that cannot be told."""
        widths = np.array([self._ours.num_bytes(token) for token in ids], np.int64)
        if int(widths.sum()) == len(text.encode()):
            return np.cumsum(widths) - widths
        again = self._ours.encode(text)
        if again.ids.tolist() != list(ids):
            return None  # tokens that its tokenizer would not have chosen, or a text that it changes
        begins = _in_bytes(text, again.offsets[:, 0])
        begins[1:][np.diff(begins) == 0] = -1  # the rest of a character that was begun, or no text at all
        return begins


def _in_bytes(text: str, characters: Places) -> Places:
    """Places in characters as places in bytes of UTF-8."""
    if text.isascii():
        return characters.copy()
    sizes = np.array([0, *(len(character.encode()) for character in text)], np.int64)
    return sizes.cumsum()[characters]


def _special_tokens(
    ours: "PreTrainedTokenizerFast", theirs: "PreTrainedTokenizerFast"
) -> dict[int, list[int]]:
    """What each special token of ours is for the other model."""
    known = theirs.get_added_vocab()
    found: dict[int, list[int]] = {}
    for word, token in ours.get_added_vocab().items():
        if word in known:
            found[token] = [known[word]]
        elif token == ours.eos_token_id and isinstance(theirs.eos_token_id, int):
            found[token] = [theirs.eos_token_id]
        elif token == ours.bos_token_id:
            found[token] = [theirs.bos_token_id] if isinstance(theirs.bos_token_id, int) else []
    return found
