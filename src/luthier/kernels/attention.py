"""Causal attention over a token forest: a token sees its own segment up to itself, and all of its ancestors.

Shape suffixes: T tokens of the stream, H query heads, K key/value heads, D head size,
q and k the queries and keys of one segment.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Forest:
    """Where the segments of a stream lie, and which of them each one continues."""

    starts: tuple[int, ...]
    """Start of each segment in the stream; the last entry is the stream's length."""
    parents: tuple[int, ...]
    """For each segment the one it continues, -1 for a root."""
    windows: set[int | None] = field(default_factory=set, compare=False)
    """The windows that attention layers have asked for while this forest went through them."""

    def spans(self) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """Start and stop of each segment, and those of its ancestors from the root down."""
        for segment, parent in enumerate(self.parents):
            ancestors = []
            while parent >= 0:
                ancestors.append((self.starts[parent], self.starts[parent + 1]))
                parent = self.parents[parent]
            yield self.starts[segment], self.starts[segment + 1], ancestors[::-1]


@dataclass(frozen=True)
class AttentionRule:
    """What a model asks of its attention besides causality."""

    scale: float
    window: int | None = None
    """A token sees only keys less than this many positions before it."""
    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap) (Gemma 2, arXiv:2408.00118)."""
    dropout: float = 0.0


def forest_attention(
    query_HTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    forest: Forest,
    rule: AttentionRule,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """The attention output for every token of the stream, [T, H, D], one segment at a time.

    Roots go through torch's fused causal attention; segments with ancestors get these keys and values in front.
    `sinks_H` are per-head logits that join the softmax and carry no value (arXiv:2309.17453).
    """
    forest.windows.add(rule.window)
    outputs = []
    for start, stop, ancestors in forest.spans():
        pieces = [*ancestors, (start, stop)]
        keys = torch.cat([key_KTD[:, a:b] for a, b in pieces], 1) if ancestors else key_KTD[:, start:stop]
        values = (
            torch.cat([value_KTD[:, a:b] for a, b in pieces], 1) if ancestors else value_KTD[:, start:stop]
        )
        out_HqD = _segment(query_HTD[:, start:stop], keys, values, rule, sinks_H)
        outputs.append(out_HqD.transpose(0, 1))
    return torch.cat(outputs)


def _segment(
    query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule, sinks_H: Tensor | None
) -> Tensor:
    """Attention of one segment whose own keys are the last of `key`; [H, q, D]."""
    num_queries, num_keys = query.shape[1], key.shape[1]
    windowed = rule.window is not None and num_keys > rule.window
    if rule.softcap is not None or sinks_H is not None:
        mask = _visible(num_queries, num_keys, rule.window, query.device)
        return _by_hand(query, key, value, mask, rule, sinks_H)
    mask = None
    if windowed or num_keys > num_queries:
        mask = _visible(num_queries, num_keys, rule.window, query.device)
    out = F.scaled_dot_product_attention(
        query[None],
        key[None],
        value[None],
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=rule.dropout,
        scale=rule.scale,
        enable_gqa=query.shape[0] != key.shape[0],
    )
    return out[0]


def _visible(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """[q, k], True where a query may look; the queries are the last of the keys' positions."""
    position_q = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    position_k = torch.arange(num_keys, device=device)
    visible = position_k <= position_q
    return visible if window is None else visible & (position_q - position_k < window)


def _by_hand(
    query: Tensor, key: Tensor, value: Tensor, mask_qk: Tensor, rule: AttentionRule, sinks_H: Tensor | None
) -> Tensor:
    """Plain attention with what torch's fused one cannot do; softmax in fp32."""
    groups = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    scores_Hqk = query @ key.transpose(1, 2) * rule.scale
    if rule.softcap is not None:
        scores_Hqk = torch.tanh(scores_Hqk / rule.softcap) * rule.softcap
    scores_Hqk = scores_Hqk.masked_fill(~mask_qk, -torch.inf)
    if sinks_H is not None:
        sinks = sinks_H.to(scores_Hqk.dtype)[:, None, None].expand(-1, scores_Hqk.shape[1], 1)
        scores_Hqk = torch.cat([scores_Hqk, sinks], -1)
    accumulate = torch.promote_types(scores_Hqk.dtype, torch.float32)
    weights_Hqk = torch.softmax(scores_Hqk, -1, dtype=accumulate).to(query.dtype)
    if sinks_H is not None:
        weights_Hqk = weights_Hqk[..., :-1]
    return F.dropout(weights_Hqk, rule.dropout) @ value


def reference(
    query_HTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    forest: Forest,
    rule: AttentionRule,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """The same by one dense [T, T] mask: slow, and the truth that `forest_attention` is tested against."""
    mask_TT = dense_mask(forest, rule.window).to(query_HTD.device)
    return _by_hand(query_HTD, key_KTD, value_KTD, mask_TT, rule, sinks_H).transpose(0, 1)


def dense_mask(forest: Forest, window: int | None = None) -> Tensor:
    """[T, T], True where the token of the row sees the token of the column."""
    num_tokens = forest.starts[-1]
    mask_TT = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    for start, stop, ancestors in forest.spans():
        path = torch.cat([torch.arange(a, b) for a, b in [*ancestors, (start, stop)]])
        for depth in range(len(path) - (stop - start), len(path)):
            first = 0 if window is None else max(0, depth - window + 1)
            mask_TT[path[depth], path[first : depth + 1]] = True
    return mask_TT


def cases() -> list[tuple[Forest, AttentionRule]]:
    """Small forests and rules that between them reach every branch."""
    single = Forest((0, 7), (-1,))
    roots = Forest((0, 5, 6, 14), (-1, -1, -1))
    tree = Forest((0, 6, 9, 13, 15, 20), (-1, 0, 0, 2, -1))
    rules: Sequence[AttentionRule] = (
        AttentionRule(0.35),
        AttentionRule(0.35, window=4),
        AttentionRule(0.5, softcap=2.0),
        AttentionRule(0.5, window=3, softcap=2.0),
    )
    return [(forest, rule) for forest in (single, roots, tree) for rule in rules]
