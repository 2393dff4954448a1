"""From text and character spans to token ids and targets.

A token is a target when it lies inside a span. One that lies across a span's edge is partly prompt and partly
answer; there is no right side for it, so the row is refused. The tokenizer is a private copy without the
post-processor: with `add_special_tokens=False` that adds nothing, but it hides white space from the offsets.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from luthier.data.widths import offsets_from_widths, token_widths
from luthier.errors import DataError, RowRefused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Span = tuple[int, int]
WeightedSpan = tuple[int, int, float]
"""First character, end, and how much each token in between counts."""


class Tokens:
    """A tokenised text.

    Args:
        text: the text.
        ids: its token ids.
        offsets: gives for each id a row [start, end) of characters; asked when it is needed.
    """

    def __init__(self, text: str, ids: NDArray[np.int32], offsets: Callable[[], NDArray[np.int64]]):
        self.text = text
        self.ids = ids
        self._offsets = offsets

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """A row [start, end) of characters for each id."""
        return self._offsets()


class TokenEncoder:
    """Tokenises texts that are already rendered, without adding anything.

    Raises:
        DataError: if the tokenizer cannot say where its tokens stand in the text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise DataError(
                f"the tokenizer {type(tokenizer).__name__} is not a fast one, so it cannot say where its "
                "tokens stand in the text; choose a model with a tokenizer.json"
            )
        self._tokenizer = Tokenizer.from_str(backend.to_str())
        self._tokenizer.post_processor = None  # type: ignore[assignment]  # allowed, though typed otherwise
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._widths = token_widths(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder()
        # Such tokens swallow the white space next to them, and their offsets include it.
        swallowing = [number for number, token in added.items() if token.lstrip or token.rstrip]
        self._swallowing = np.array(sorted(swallowing), dtype=np.int32)
        self.added = {token.content: token.special for token in added.values()}
        """Every added token, and whether it is a special one."""

    def encode(self, text: str) -> Tokens:
        """The tokens of one text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of many texts, on all cores."""
        return self.tokens(texts, self.start(texts))

    def start(self, texts: Sequence[str]) -> list[Encoding]:
        """The part of `encode_batch` that runs outside of Python and may run in a thread of its own."""
        if self._widths is not None:
            return self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return self._tokenizer.encode_batch(list(texts), add_special_tokens=False)

    def tokens(self, texts: Sequence[str], encodings: Sequence[Encoding]) -> list[Tokens]:
        """The rest of `encode_batch`, for what `start` gave."""
        return [self._tokens(text, one) for text, one in zip(texts, encodings, strict=True)]

    def num_bytes(self, number: int) -> int:
        """Bytes of UTF-8 that a token stands for; where the tokenizer does not tell, of what it is decoded to."""
        if self._widths is not None:
            return int(self._widths[number])
        return len(self._tokenizer.decode([number], skip_special_tokens=False).encode())

    def token_ends(self, text: str) -> list[int]:
        """The characters at which the tokens of a text end, in order."""
        return self.encode(text).offsets[:, 1].tolist()

    def pieces(self, ids: NDArray[np.int32], weights: NDArray[np.float32]) -> list[tuple[str, bool]]:
        """Ids as text in pieces, each with whether it is learned, to show them to people."""
        edges = [0, *(np.flatnonzero(np.diff(weights > 0)) + 1).tolist(), len(ids)]
        return [
            (
                self._tokenizer.decode(ids[start:end].tolist(), skip_special_tokens=False),
                bool(weights[start] > 0),
            )
            for start, end in pairwise(edges)
            if end > start
        ]

    def _tokens(self, text: str, encoding: Encoding) -> Tokens:
        ids = np.array(encoding.ids, dtype=np.int32)
        if self._widths is None:
            return Tokens(text, ids, lambda: self._measured(text, ids, encoding.offsets))
        return Tokens(text, ids, lambda: self._laid_out(text, ids))

    def _laid_out(self, text: str, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """Where the tokens stand, from their widths alone if that works out for this text."""
        assert self._widths is not None
        found = offsets_from_widths(text, self._widths[ids])
        if found is not None:
            return found
        (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        assert len(encoding.ids) == len(ids), "both ways to tokenise give the same"
        return self._measured(text, ids, encoding.offsets)

    def _measured(self, text: str, ids: NDArray[np.int32], offsets: list[Span]) -> NDArray[np.int64]:
        spans = np.array(offsets, dtype=np.int64).reshape(len(ids), 2)
        for index in np.flatnonzero(np.isin(ids, self._swallowing)):
            start, end = spans[index]
            piece = text[start:end]
            spans[index] = start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
        return spans


def mark_weights(tokens: Tokens, spans: Sequence[WeightedSpan]) -> NDArray[np.float32]:
    """The weight of each token: that of the span it lies in, 0 outside. Spans of different weights do not overlap.

    Raises:
        RowRefused: if a token lies across an edge, naming it and its two sides.
    """
    weights = np.zeros(len(tokens.ids), dtype=np.float32)
    for weight in sorted({span[2] for span in spans if span[2] > 0}):
        own = [(start, end) for start, end, its in spans if its == weight]
        weights[mark_targets(tokens, own)] = weight
    return weights


def mark_targets(tokens: Tokens, spans: Iterable[Span]) -> NDArray[np.bool_]:
    """Which tokens lie inside the spans. A token without width belongs to what follows it.

    Raises:
        RowRefused: if a token lies across an edge, naming it and its two sides.
    """
    edges = np.array([edge for span in merged_spans(spans) for edge in span], dtype=np.int64)
    starts, ends = tokens.offsets[:, 0], tokens.offsets[:, 1]
    before = np.searchsorted(edges, starts, side="right")
    across = np.flatnonzero(np.searchsorted(edges, ends, side="left") > before)
    if len(across):
        index = across[0]
        start, end, edge = int(starts[index]), int(ends[index]), int(edges[before[index]])
        kinds = ("an answer", "prompt") if before[index] % 2 else ("prompt", "an answer")
        raise RowRefused(
            f"the token {tokens.text[start:end]!r} is partly {kinds[0]} ({tokens.text[start:edge]!r}) "
            f"and partly {kinds[1]} ({tokens.text[edge:end]!r}); "
            "remove the white space at that edge of the message; if it has none there, the template writes it, "
            "and this tokenizer joins the two"
        )
    return before % 2 == 1


def merged_spans(spans: Iterable[Span]) -> list[Span]:
    """The spans in order, those that touch joined into one, empty ones left out."""
    result: list[Span] = []
    for start, end in sorted(span for span in spans if span[1] > span[0]):
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((start, end))
    return result


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the words, the longest first, and looks only where one can begin."""
    by_first: dict[str, list[str]] = {}
    for word in sorted(set(words), key=lambda word: (-len(word), word)):
        by_first.setdefault(word[0], []).append(re.escape(word[1:]))
    if not by_first:
        return re.compile("(?!)")
    return re.compile("|".join(f"{re.escape(first)}(?:{'|'.join(rest)})" for first, rest in by_first.items()))


def last_learned(targets: NDArray[Any]) -> slice:
    """Where the last unbroken run of targets lies. There must be one."""
    learned = np.flatnonzero(targets)
    gaps = np.flatnonzero(np.diff(learned) > 1)
    return slice(int(learned[gaps[-1] + 1 if len(gaps) else 0]), int(learned[-1]) + 1)
