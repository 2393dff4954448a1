"""The two ways in which a stream of tokens attends: one new token for each row, or prompts read at once.

Shape suffixes: T tokens of the stream, B rows, N blocks of a row, H query heads, G key heads, D head size, q new
and k all tokens of one sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels import attention, decode_attention, native
from luthier.kernels.attention import AttentionRule, Forest
from luthier.models.decoding.cache import BlockCache, Stored, table

SHORT = 2048
"""Where a sequence is read on by so few pairs of new token and token seen, each new token attends like one that steps.
Beyond, copying what was read before side by side and one larger product are faster."""
Span = tuple[Stored, int, int]


class Attention(Protocol):
    """What a layer asks: stores the stream's keys and values in the cache of layer `layer`, and attends."""

    def __call__(
        self, layer: int, rule: AttentionRule, query: Tensor, key: Tensor, value: Tensor, out: Tensor
    ) -> None:
        """Query and out are [T, H, D], key and value [T, G, D]."""
        ...


class Stepping:
    """A token for each row: `table_BN` are their blocks, `length_B` their lengths with the new token.

    `longest` is the greatest of these, known without asking the device: else every layer would wait for it.
    """

    def __init__(self, cache: BlockCache, table_BN: Tensor, length_B: Tensor, longest: int):
        self._cache, self._table_BN, self._length_B, self._longest = cache, table_BN, length_B, longest

    def __call__(
        self, layer: int, rule: AttentionRule, query: Tensor, key: Tensor, value: Tensor, out: Tensor
    ) -> None:
        keys, values = self._cache.keys(layer), self._cache.values(layer)
        decode_attention.forward(
            query,
            key,
            value,
            keys,
            values,
            self._table_BN,
            self._length_B,
            rule,
            out=out,
            longest=self._longest,
        )


class Reading:
    """New tokens of several sequences, one after the other: `spans` are each sequence's first and last + 1."""

    def __init__(self, cache: BlockCache, spans: Sequence[Span]):
        self._cache = cache
        places = [cache.places(*span) for span in spans]
        self._place_T = torch.cat([block for block, _ in places]), torch.cat([place for _, place in places])
        self._parts: list[_Part] = []
        start = 0
        for kind, some in groupby(spans, self._kind):
            self._parts.append(_Part.of(kind, list(some), start, self._place_T[0].device))
            start = self._parts[-1].stop

    def __call__(
        self, layer: int, rule: AttentionRule, query: Tensor, key: Tensor, value: Tensor, out: Tensor
    ) -> None:
        self._cache.write(layer, self._place_T, key, value)
        for part in self._parts:
            here = slice(part.start, part.stop)
            stream = query[here], key[here], value[here]
            if part.kind == "anew":
                attention.attend(*stream, part.forest, rule, out=out[here])
            elif part.kind == "short":
                Stepping(self._cache, part.table_TN, part.length_T, part.longest)(
                    layer, rule, *stream, out[here]
                )
            else:
                self._long(layer, rule, part, stream, out[here])

    def _long(
        self, layer: int, rule: AttentionRule, part: "_Part", stream: tuple[Tensor, ...], out: Tensor
    ) -> None:
        """Each sequence by itself, with copies of what was read before."""
        starts = part.forest.starts
        for (stored, first, _), a, b in zip(part.spans, starts, starts[1:], strict=False):
            query, key, value = (one[a:b].transpose(0, 1) for one in stream)
            past_key, past_value = self._cache.read(layer, stored, first)
            key_Gk, value_Gk = (
                torch.cat([past.to(new.dtype), new], 1)
                for past, new in ((past_key, key), (past_value, value))
            )
            out[a:b] = _continue(query, key_Gk, value_Gk, rule).transpose(0, 1)

    def _kind(self, span: Span) -> "Kind":
        _, start, stop = span
        if start == 0:
            return "anew"
        place = self._cache.keys(0).device
        # Without the compiled kernel, each token would copy what was read before.
        stepping = place.type == "cpu" and native.library() is not None
        return "short" if stepping and (stop - start) * stop <= SHORT else "long"


Kind = Literal["anew", "short", "long"]


@dataclass(frozen=True)
class _Part:
    """Neighbouring spans that attend in one way, and where in the stream they are."""

    kind: Kind
    spans: Sequence[Span]
    start: int
    stop: int
    forest: Forest
    """Where in the part each begins."""
    table_TN: Tensor
    length_T: Tensor
    longest: int

    @classmethod
    def of(cls, kind: Kind, spans: Sequence[Span], start: int, device: torch.device) -> "_Part":
        starts = [0]
        for _, first, end in spans:
            starts.append(starts[-1] + end - first)
        rows, lengths = [], []
        if kind == "short":  # a row for each token, as if it were the last of its sequence
            rows = [stored for stored, first, end in spans for _ in range(first, end)]
            lengths = [place + 1 for _, first, end in spans for place in range(first, end)]
        return cls(
            kind,
            spans,
            start,
            start + starts[-1],
            Forest(tuple(starts), (-1,) * len(spans)),
            table(rows, device),
            torch.tensor(lengths, dtype=torch.int32, device=device),
            max(lengths, default=0),
        )


def _continue(query_HqD: Tensor, key_GkD: Tensor, value_GkD: Tensor, rule: AttentionRule) -> Tensor:
    """Attention of tokens that are the last of the keys' tokens."""
    num_new, num_all = query_HqD.shape[1], key_GkD.shape[1]
    place_k = torch.arange(num_all, device=query_HqD.device)
    place_q = place_k[num_all - num_new :, None]
    seen_qk = place_k <= place_q
    if rule.window is not None:
        seen_qk &= place_q - place_k < rule.window
    if rule.softcap is None:
        return F.scaled_dot_product_attention(
            query_HqD[None], key_GkD[None], value_GkD[None], seen_qk, scale=rule.scale, enable_gqa=True
        )[0]
    groups = query_HqD.shape[0] // key_GkD.shape[0]
    scores_Hqk = query_HqD @ key_GkD.repeat_interleave(groups, 0).transpose(1, 2) * rule.scale
    scores_Hqk = torch.tanh(scores_Hqk / rule.softcap) * rule.softcap
    wide = torch.promote_types(scores_Hqk.dtype, torch.float32)
    weights_Hqk = scores_Hqk.masked_fill(~seen_qk, -torch.inf).softmax(-1, dtype=wide).to(value_GkD.dtype)
    return weights_Hqk @ value_GkD.repeat_interleave(groups, 0)
