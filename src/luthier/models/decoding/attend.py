"""The two ways in which a stream of tokens attends: one new token for each row, or prompts read at once.

Shape suffixes: T tokens of the stream, B rows, N blocks of a row, H query heads, G key heads, D head size, q new
and k all tokens of one sequence.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels import attention, decode_attention
from luthier.kernels.attention import AttentionRule, Forest
from luthier.models.decoding.cache import BlockCache, Stored


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

    def __init__(self, cache: BlockCache, spans: Sequence[tuple[Stored, int, int]]):
        self._cache, self._spans = cache, spans
        places = [cache.places(*span) for span in spans]
        self._place_T = torch.cat([block for block, _ in places]), torch.cat([place for _, place in places])
        starts = [0]
        for _, start, stop in spans:
            starts.append(starts[-1] + stop - start)
        self._forest = Forest(tuple(starts), (-1,) * len(spans))
        self._anew = all(start == 0 for _, start, _ in spans)

    def __call__(
        self, layer: int, rule: AttentionRule, query: Tensor, key: Tensor, value: Tensor, out: Tensor
    ) -> None:
        self._cache.write(layer, self._place_T, key, value)
        if self._anew:
            attention.attend(query, key, value, self._forest, rule, out=out)
            return
        for (stored, start, _), (a, b) in zip(self._spans, pairwise(self._forest.starts), strict=True):
            past_key, past_value = self._cache.read(layer, stored, start)
            key_Gk, value_Gk = (
                torch.cat([past.to(new.dtype), new[a:b].transpose(0, 1)], 1)
                for past, new in ((past_key, key), (past_value, value))
            )
            out[a:b] = _continue(query[a:b].transpose(0, 1), key_Gk, value_Gk, rule).transpose(0, 1)


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
