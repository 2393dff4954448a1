"""Rows without a chat template: text, raw pieces, and rows that were tokenised elsewhere.

Control tokens in such rows are read as what they are: whoever writes raw text writes them on purpose.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.batch import Example, Segment
from luthier.data.content import Pieces, Text, TokenIds
from luthier.data.draft import Draft, EncodedRow, EncodeOptions, dropped, one_segment, too_long
from luthier.data.tokens import TokenEncoder, Tokens, WeightedSpan, mark_weights
from luthier.errors import RowRefused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BYTES = "bytes"
"""The fact about a text: how many bytes of UTF-8 its predicted tokens stand for, all its blocks together."""


class TextDrafts:
    """Makes drafts of rows that need no template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", encoder: TokenEncoder, options: EncodeOptions):
        self._options = options
        self._encoder = encoder
        self._num_tokens = len(tokenizer)
        own: Any = tokenizer
        self._before, after = added_around(own)
        end = own.eos_token_id
        self._after = [*after, end] if end is not None and end not in after else after

    def text(self, content: Text) -> Draft:
        """A document: what the tokenizer itself puts around a text, and the end-of-text token, which is learned.

        Neither is put there twice if the text already has it.
        """
        if not content.text.strip():
            raise RowRefused("the text is empty")

        def whole(tokens: Sequence[Tokens]) -> EncodedRow:
            (found,) = tokens
            inner = found.ids.tolist()
            before = [] if inner[: len(self._before)] == self._before else self._before
            after = [] if self._after and inner[-len(self._after) :] == self._after else self._after
            ids = np.array([*before, *inner, *after], dtype=np.int32)
            weights = np.ones(len(ids), dtype=np.float32)
            weights[: len(before)] = 0
            size = len(content.text.encode("utf-8", "surrogatepass"))
            if inner and not before:
                size -= self._encoder.num_bytes(inner[0])  # nothing stands before it: it is not predicted
            example = Example((Segment(ids, weights),), columns={BYTES: float(size)})
            return EncodedRow((example,), content.text)

        return Draft([content.text], whole, self._shorten_text)

    def token_ids(self, content: TokenIds) -> Draft:
        """A row of ids, as they are."""
        ids = np.asarray(content.ids)
        if not len(ids):
            raise RowRefused("the list of token ids is empty")
        if len(ids) != len(content.weights):
            raise RowRefused(f"the row has {len(ids)} token ids, but {len(content.weights)} labels")
        if ids.min() < 0 or ids.max() >= self._num_tokens:
            wrong = int(ids[(ids < 0) | (ids >= self._num_tokens)][0])
            raise RowRefused(
                f"the token id {wrong} is none of the tokenizer's (0 to {self._num_tokens - 1}); "
                "the row was made with another tokenizer"
            )
        weights = np.asarray(content.weights, dtype=np.float32)
        if not weights.any():
            raise RowRefused("all targets masked: no token of this row is to be learned")
        row = EncodedRow((one_segment(ids.astype(np.int32), weights),), "")
        documents = bool((weights > 0).all())
        return Draft([], lambda _: row, self._shorten_text if documents else self._drop)

    def pieces(self, content: Pieces) -> Draft:
        """Raw pieces as one text. Where a token would lie across the edge of what is learned, both sides are
        tokenised on their own, as they are when the model is used."""
        runs = [
            ("".join(text for text, _ in group), learned)
            for learned, group in groupby(content.pieces, key=lambda piece: piece[1])
        ]
        runs = [(text, learned) for text, learned in runs if text]
        if not any(learned for _, learned in runs):
            raise RowRefused("all targets masked: no piece of this row is to be learned")
        text = "".join(text for text, _ in runs)
        spans: list[WeightedSpan] = []
        done = 0
        for piece, learned in runs:
            spans += [(done, done + len(piece), 1.0)] if learned else []
            done += len(piece)

        def whole(tokens: Sequence[Tokens]) -> EncodedRow:
            try:
                ids, weights = tokens[0].ids, mark_weights(tokens[0], spans)
            except RowRefused:
                ids, weights = self._apart(runs)
            return EncodedRow((one_segment(ids, weights),), text)

        return Draft([text], whole, self._drop)

    def _apart(self, runs: Sequence[tuple[str, bool]]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        tokens = self._encoder.encode_batch([text for text, _ in runs])
        weights = [
            np.full(len(one.ids), learned, dtype=np.float32)
            for one, (_, learned) in zip(tokens, runs, strict=True)
        ]
        return np.concatenate([one.ids for one in tokens]), np.concatenate(weights)

    def _shorten_text(self, row: EncodedRow, length: int) -> EncodedRow:
        """Blocks of the allowed length, in which every token after the first is learned once; or the first only.

        A block after the first starts with the last token of the one before it, which is not learned again.
        """
        most, overlong = self._options.max_length, self._options.overlong
        (segment,) = row.examples[0].segments
        if overlong in (None, "split") and self._options.in_blocks:
            return row
        if overlong in (None, "split"):
            starts = range(0, len(segment.ids) - 1, max(1, most - 1))
            blocks = [(segment.ids[at : at + most], segment.weights[at : at + most].copy()) for at in starts]
            for _, weights in blocks[1:]:
                weights[0] = 0
            size = row.examples[0].columns.get(BYTES)
            columns = [{} if size is None else {BYTES: size if not at else 0.0} for at in starts]
            examples = [
                Example((Segment(*block),), columns=own) for block, own in zip(blocks, columns, strict=True)
            ]
            return EncodedRow(tuple(examples), row.text)
        if overlong == "truncate_response":
            reason = f"{too_long(length, self._options)}; its last {length - most} tokens are left out"
            example = one_segment(segment.ids[:most], segment.weights[:most])
            return EncodedRow((example,), row.text, "truncated", reason)
        raise dropped(length, self._options, "text, which has no turns,")

    def _drop(self, row: EncodedRow, length: int) -> EncodedRow:
        what = "raw pieces" if row.text else "a row of token ids of which a part is learned"
        raise dropped(length, self._options, what)


def added_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after every text."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    if len(inner) >= len(full):
        return [], []
    starts = range(len(full) - len(inner) + 1)
    start = next((at for at in starts if full[at : at + len(inner)] == inner), len(full))
    return list(full[:start]), list(full[start + len(inner) :])
