"""What a model thinks before it answers (the text between <think> and </think>), parted from it while it comes."""

from collections.abc import Iterator

OPENS, CLOSES = "<think>", "</think>"


class ThoughtReader:
    """Parts the text of one answer into thoughts and the rest. White space between them belongs to neither.

    Args:
        opened: the prompt has opened the thoughts already, as some templates do.
    """

    def __init__(self, opened: bool = False):
        self._inside = opened
        self._held = ""
        self._fresh = opened  # nothing of this part was given yet: white space at its start is dropped
        self.thoughts = ""
        """Everything thought so far."""

    def push(self, piece: str) -> str:
        """Reads a piece; returns what of it, and of what was held back before, is answer."""
        self._held += piece
        return "".join(self._parts(last=False))

    def close(self) -> str:
        """No text follows: what was held back is text after all."""
        return "".join(self._parts(last=True))

    def _parts(self, last: bool) -> Iterator[str]:
        while True:
            tag = CLOSES if self._inside else OPENS
            place = self._held.find(tag)
            sure = place if place >= 0 else len(self._held) - (0 if last else _beginning(self._held, tag))
            text, self._held = self._held[:sure], self._held[sure:]
            if self._fresh:
                text = text.lstrip()
                self._fresh = not text
            if self._inside:
                self.thoughts += text
            elif text:
                yield text
            if place < 0:
                return
            self._held, self._inside, self._fresh = self._held[len(tag) :], not self._inside, True


def _beginning(text: str, word: str) -> int:
    """Length of the longest end of the text that begins the word."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if word.startswith(text[-n:])), 0)
