"""From tokens to text while they come: whole characters only, and an end at the first stop string.

A character's bytes may be spread over tokens, and a stop string too. So text is handed out only when no later
token can change it.
"""

from collections.abc import Sequence
from typing import Any, Protocol

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not, or not yet, a character."""

WINDOW = 16
"""Tokens that are decoded anew with each token; more of them only cost time."""


class Detokenizer(Protocol):
    """The part of a tokenizer that turns ids into text."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> Any:
        """The text of one list of ids; Any because transformers' own also takes lists of lists."""
        ...


def decode(tokenizer: Detokenizer, ids: Sequence[int]) -> str:
    """The text of an answer, without special tokens and without a last character that is not all there."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.rstrip(REPLACEMENT)


class TextReader:
    """The text of one answer, read token by token. `push` and `close` return what is new and certain."""

    def __init__(self, tokenizer: Detokenizer, stop: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._window: list[int] = []
        self._mark = 0  # in the window: where a token last ended on a whole character
        self._given = 0  # characters of the window's text already taken
        self._held = ""  # taken, but perhaps the beginning of a stop string
        self._parts: list[str] = []
        self.stopped = False
        """Whether a stop string was found; nothing is read after it."""

    @property
    def text(self) -> str:
        """Everything returned so far."""
        return "".join(self._parts)

    def push(self, token: int) -> str:
        """Reads one more token."""
        if self.stopped:
            return ""
        self._held += self._decoded(token)
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return self._give(min(found))
        return self._give(len(self._held) - self._unsure())

    def close(self) -> str:
        """No token follows: what was held back is text after all."""
        return "" if self.stopped else self._give(len(self._held))

    def _give(self, num_characters: int) -> str:
        piece, self._held = self._held[:num_characters], self._held[num_characters:]
        self._parts.append(piece)
        return piece

    def _unsure(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        ends = (
            n for n in range(longest, 0, -1) if any(stop.startswith(self._held[-n:]) for stop in self._stop)
        )
        return next(ends, 0)

    def _decoded(self, token: int) -> str:
        self._window.append(token)
        text = self._decode_window()
        whole = text.rstrip(REPLACEMENT)
        piece = whole[self._given :]
        self._given += len(piece)
        if whole == text:
            if len(self._window) > WINDOW:
                # The tokens since the mark stay as context: some tokenizers drop a space at a text's start.
                del self._window[: self._mark]
                self._given = len(self._decode_window())
            self._mark = len(self._window)
        return piece

    def _decode_window(self) -> str:
        return self._tokenizer.decode(
            self._window, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
