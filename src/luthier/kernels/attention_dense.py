"""Attention over a forest in plain torch, as autograd sees it: the definition, and the one path that has dropout.

Shape suffixes: T tokens of the stream, H query heads, K key/value heads, D head size,
q and k the queries and keys of one segment.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.forest import AttentionRule, Forest


def by_hand(
    query: Tensor, key: Tensor, value: Tensor, mask_qk: Tensor, rule: AttentionRule, sinks_H: Tensor | None
) -> Tensor:
    """Plain attention, [H, q, D], with everything a rule can ask for; softmax in fp32 at least."""
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


def with_dropout(
    query_HTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    forest: Forest,
    rule: AttentionRule,
    sinks_H: Tensor | None,
) -> Tensor:
    """[T, H, D], segment by segment, with dropped attention weights."""
    outputs = []
    for start, stop, ancestors in forest.spans():
        pieces = [*ancestors, (start, stop)]
        keys = torch.cat([key_KTD[:, a:b] for a, b in pieces], 1)
        values = torch.cat([value_KTD[:, a:b] for a, b in pieces], 1)
        out_HqD = _segment(query_HTD[:, start:stop], keys, values, rule, sinks_H)
        outputs.append(out_HqD.transpose(0, 1))
    return torch.cat(outputs) if outputs else query_HTD.new_empty(0, query_HTD.shape[0], value_KTD.shape[2])


def _segment(
    query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule, sinks_H: Tensor | None
) -> Tensor:
    """Attention of one segment whose own keys are the last of `key`; [H, q, D]."""
    num_queries, num_keys = query.shape[1], key.shape[1]
    mask = _visible(num_queries, num_keys, rule.window, query.device)
    if rule.softcap is not None or sinks_H is not None:
        return by_hand(query, key, value, mask, rule, sinks_H)
    plainly_causal = num_keys == num_queries and (rule.window is None or num_keys <= rule.window)
    out = F.scaled_dot_product_attention(
        query[None],
        key[None],
        value[None],
        attn_mask=None if plainly_causal else mask,
        is_causal=plainly_causal,
        dropout_p=rule.dropout,
        scale=rule.scale,
        enable_gqa=query.shape[0] != key.shape[0],
    )
    return out[0]


def _visible(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """[q, k], True where a query may look; the queries are the last of the keys' positions."""
    position_q = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    position_k = torch.arange(num_keys, device=device)
    seen = position_k <= position_q
    return seen if window is None else seen & (position_q - position_k < window)
