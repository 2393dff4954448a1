"""Rows for models that score: texts with a label, and a query with texts. No token of them is learned.

Texts are tokenised as the tokenizer does it when it is called with a text, so that the model is used as it was
trained: what it puts around a text is there, and nothing else.

Shape: a labelled text is one document. A query with texts is, for embeddings, a document each, the query first; for
rerankers one document whose beginning is the query (`JOINED`), shared by all its texts.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.data.batch import Example, Segment
from luthier.data.content import Content, Labelled, Related
from luthier.data.draft import Draft, EncodedRow, EncodeOptions, dropped, too_long
from luthier.data.encode_text import added_around
from luthier.data.tokens import Tokens
from luthier.errors import RowRefused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

JOINED = "Query: {query}\nDocument: {document}"
"""How a reranker sees a query and a text."""
QUERY = -1.0
"""What stands for the query in the column `relevance`."""


class ScoredDrafts:
    """Makes drafts of rows that are scored."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", options: EncodeOptions):
        self._options = options
        own: Any = tokenizer
        self._before, self._after = added_around(own)

    def labelled(self, content: Labelled) -> Draft:
        """A text; the column `label` holds the number of its class, or its number."""
        label = self._label(content.label)

        def whole(tokens: Sequence[Tokens]) -> EncodedRow:
            example = Example((self._segment(tokens[0].ids.tolist()),), columns={"label": label})
            return EncodedRow((example,), content.text)

        def shorten(row: EncodedRow, length: int) -> EncodedRow:
            if self._options.overlong != "truncate_response":
                raise dropped(length, self._options, "a text with a label")
            (segment,) = row.examples[0].segments
            most = self._options.max_length
            ids = np.concatenate([segment.ids[: most - len(self._after)], self._ids(self._after)])
            kept = Segment(ids, _zeros(most))
            reason = f"{too_long(length, self._options)}; its last {length - most} tokens are left out"
            return EncodedRow((Example((kept,), columns={"label": label}),), row.text, "truncated", reason)

        return Draft([content.text], whole, shorten)

    def related(self, content: Related) -> Draft:
        """A query and its texts; the column `relevance` holds the label of each, and `QUERY` for the query itself."""
        if self._options.joined:
            texts = [JOINED.format(query=content.query, document=text) for text in content.texts]
            return Draft(texts, lambda tokens: self._joined(tokens, content), self._drop)
        return Draft([content.query, *content.texts], lambda tokens: self._apart(tokens, content), self._drop)

    def _apart(self, tokens: Sequence[Tokens], content: Related) -> EncodedRow:
        segments = tuple(self._segment(one.ids.tolist()) for one in tokens)
        columns: dict[str, float | tuple[float, ...]] = {"relevance": (QUERY, *content.labels)}
        return EncodedRow((Example(segments, columns=columns),), content.query)

    def _joined(self, tokens: Sequence[Tokens], content: Related) -> EncodedRow:
        ids = [self._segment(one.ids.tolist()).ids for one in tokens]
        shared = 0
        if len(ids) > 1:
            most = min(map(len, ids)) - 1
            alike = np.stack([one[:most] for one in ids])
            shared = int(np.cumprod((alike == alike[0]).all(0)).sum())
        root = [Segment(ids[0][:shared], _zeros(shared))] if shared else []
        parent = 0 if shared else -1
        leaves = [Segment(one[shared:], _zeros(len(one) - shared), parent) for one in ids]
        columns: dict[str, float | tuple[float, ...]] = {"relevance": content.labels}
        return EncodedRow((Example((*root, *leaves), columns=columns),), content.query)

    def _label(self, label: str | float) -> float:
        """The number of a class among those that are known, or the number itself."""
        known = self._options.labels
        if not known:
            return float(label)
        name = label_name(label)
        if name not in known:
            shown = ", ".join(repr(one) for one in known[:8]) + (", …" if len(known) > 8 else "")
            raise RowRefused(f"`label` is {name!r}, which is none of the classes {shown}")
        return float(known.index(name))

    def _segment(self, ids: list[int]) -> Segment:
        every = [*self._before, *ids, *self._after]
        if not every:
            raise RowRefused("a text has no tokens")
        return Segment(self._ids(every), _zeros(len(every)))

    def _drop(self, row: EncodedRow, length: int) -> EncodedRow:
        raise dropped(length, self._options, "a query with texts")

    @staticmethod
    def _ids(ids: Sequence[int]) -> Any:
        return np.array(ids, dtype=np.int32)


def label_name(label: str | float) -> str:
    """The name of a class: numbers without a decimal point, true and false as 1 and 0."""
    return label if isinstance(label, str) else f"{label:g}"


def label_names(contents: Iterable[Content]) -> tuple[str, ...]:
    """The names of the classes that contents have: numbers in their order, then names by alphabet."""
    found = {label_name(one.label) for one in contents if isinstance(one, Labelled)}
    return tuple(
        sorted(found, key=lambda name: (0, float(name), name) if _is_number(name) else (1, 0.0, name))
    )


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def _zeros(num: int) -> Any:
    return np.zeros(num, dtype=np.float32)
