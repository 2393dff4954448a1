"""Text to tokens by what a GGUF file says alone, in the steps that llama.cpp takes.

Control tokens are cut out first, longest first; the text between them is either split by the rule of the file's name
and merged (`gpt2`), or gets a space in front, has its spaces written as ▁ and its neighbours joined by score (`llama`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gguf
from gguf.constants import TokenType
from tokenizers import Tokenizer, models

from luthier.export.gguf.tokens import PHI3_KEEP, PHI3_NAMES
from luthier.models import splitting

KEY = "tokenizer.ggml."
WHOLE = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


class FileWords:
    """The tokenizer that a file describes. What cannot be read is told in `fault`, and then it has no tokens."""

    def __init__(self, file: gguf.GGUFReader):
        def told(key: str) -> Any:
            field = file.fields.get(key)
            return field.contents() if field is not None else None

        self.tokens: list[str] = list(told(f"{KEY}tokens"))
        types: Sequence[int] = told(f"{KEY}token_type")
        self.template: Any = told("tokenizer.chat_template")
        self._numbers = {text: number for number, text in enumerate(self.tokens)}
        whole = [text for text, kind in zip(self.tokens, types, strict=True) if kind in WHOLE]
        self._whole = _any_of(whole)
        name = str(told("general.name") or "").lower()
        swallows = any(mark in name for mark in PHI3_NAMES)
        control = {text for text, kind in zip(self.tokens, types, strict=True) if kind == TokenType.CONTROL}
        self._swallowing = control - PHI3_KEEP if swallows else set()
        self._prefix = bool(told(f"{KEY}add_space_prefix"))
        self._scores: Sequence[float] | None = told(f"{KEY}scores")
        self.backend: Tokenizer | None = None
        """What splits and merges the text between control tokens, if bytes are merged."""
        self.fault = ""
        model, rule = told(f"{KEY}model"), told(f"{KEY}pre")
        if model == "gpt2":
            self.backend = _merging(rule, self._numbers, told(f"{KEY}merges"))
            self.fault = (
                "" if self.backend else f"the file splits text by {rule!r}, a rule that is not known here"
            )
        elif model != "llama" or self._scores is None:
            self.fault = f"the file has a tokenizer of the kind {model!r}, which is not known here"

    def special(self, which: str, file: gguf.GGUFReader) -> str | None:
        """The text of a token that the file names, such as `bos`."""
        field = file.fields.get(f"{KEY}{which}_token_id")
        return self.tokens[int(field.contents())] if field is not None else None

    def ids(self, text: str) -> list[int]:
        """Tokens of a text with control tokens in it."""
        if self.fault:
            return []
        found: list[int] = []
        behind_control, swallow = True, False
        for piece, is_whole in _cut(text, self._whole):
            if is_whole:
                found.append(self._numbers[piece])
                behind_control, swallow = True, piece in self._swallowing
                continue
            raw = piece.lstrip() if swallow else piece
            if raw:
                found += self._pieces(raw, behind_control)
            behind_control = swallow = False
        return found

    def _pieces(self, raw: str, behind_control: bool) -> list[int]:
        if self.backend is not None:
            return self.backend.encode(raw, add_special_tokens=False).ids
        spaced = " " + raw if self._prefix and behind_control else raw
        return [number for part in self._joined(spaced.replace(" ", "▁")) for number in self._known(part)]

    def _joined(self, text: str) -> list[str]:
        """Neighbours are joined, those first whose union has the highest score, the leftmost of equals."""
        assert self._scores is not None
        parts = list(text)
        while True:
            pairs = (
                (-self._scores[number], place)
                for place in range(len(parts) - 1)
                if (number := self._numbers.get(parts[place] + parts[place + 1])) is not None
            )
            best = min(pairs, default=None)
            if best is None:
                return parts
            place = best[1]
            parts[place : place + 2] = [parts[place] + parts[place + 1]]

    def _known(self, part: str) -> list[int]:
        """The token of a piece, or those of its bytes."""
        if part in self._numbers:
            return [self._numbers[part]]
        return [
            self._numbers[f"<0x{byte:02X}>"] for byte in part.encode() if f"<0x{byte:02X}>" in self._numbers
        ]


def _any_of(texts: Sequence[str]) -> re.Pattern[str] | None:
    longest = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest))) if longest else None


def _cut(text: str, whole: re.Pattern[str] | None) -> Iterator[tuple[str, bool]]:
    """Pieces in order, each with whether it is a token of its own."""
    done = 0
    for match in whole.finditer(text) if whole else ():
        if match.start() > done:
            yield text[done : match.start()], False
        yield match.group(), True
        done = match.end()
    if done < len(text):
        yield text[done:], False


def _merging(rule: str, numbers: Mapping[str, int], merges: Sequence[str]) -> Tokenizer | None:
    """Splits by the rule of this name and merges bytes; None if there is no such rule."""
    splitter = splitting.named(rule)
    if splitter is None:
        return None
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    whole_first = splitting.ignores_merges(rule)
    backend = Tokenizer(models.BPE(dict(numbers), pairs, ignore_merges=whole_first))  # type: ignore[arg-type]
    backend.pre_tokenizer = splitter  # type: ignore[assignment]
    return backend
