"""Attention over a forest as batched matrix products of torch, a tile of queries at a time: any dtype, any device.

It stands in where the C++ kernels cannot work (fp64, no compiler) and where GPUs have no fused kernel for a rule, and
it is the faster one where the processor multiplies bf16 matrices in hardware and documents are long.

Shape suffixes: T tokens of the stream, H query heads, K key/value heads, D head size, R rows of a tile (the queries of
all heads that share a key/value head, stacked), P keys that a tile may see.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.kernels.forest import AttentionRule, Forest

TILE_SCORES = 1 << 21
"""Scores of all heads that a tile holds at most, as far as one may be cut smaller; 8 MB in fp32."""
MIN_QUERIES, MAX_QUERIES = 32, 512


@dataclass(frozen=True)
class Tile:
    """Some neighbouring queries of one segment, and the stretches of the stream that hold the keys they see."""

    start: int
    stop: int
    ahead: int
    """Position of the first query, counted from the first key."""
    pieces: tuple[tuple[int, int], ...]

    def mask(self, window: int | None, device: torch.device) -> Tensor:
        """[queries, P], True where a query may not look."""
        num_keys = sum(stop - start for start, stop in self.pieces)
        query = torch.arange(self.ahead, self.ahead + self.stop - self.start, device=device)[:, None]
        key = torch.arange(num_keys, device=device)
        hidden = key > query
        return hidden if window is None else hidden | (query - key >= window)

    def gather(self, tensor_TKD: Tensor, dtype: torch.dtype) -> Tensor:
        """The keys (or values) that are seen, [K, P, D]."""
        parts = [tensor_TKD[start:stop] for start, stop in self.pieces]
        together = parts[0] if len(parts) == 1 else torch.cat(parts)
        return together.to(dtype).transpose(0, 1)

    def add(self, grads_KPD: Tensor, to_TKD: Tensor) -> None:
        """Adds gradients of the keys that are seen where these keys are."""
        offset = 0
        for start, stop in self.pieces:
            to_TKD[start:stop] += grads_KPD[:, offset : offset + stop - start].transpose(0, 1)
            offset += stop - start


def tiles(forest: Forest, num_heads: int, window: int | None) -> Iterator[Tile]:
    """Cuts the queries of every segment so that a tile's scores stay in a cache."""
    for start, stop, ancestors in forest.spans():
        pieces = [*ancestors, (start, stop)]
        offset = sum(b - a for a, b in ancestors)
        rows = TILE_SCORES // max(1, num_heads * min(offset + stop - start, window or offset + stop - start))
        step = min(max(rows, MIN_QUERIES), MAX_QUERIES)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            position = offset + first - start
            lowest = 0 if window is None else max(0, position - window + 1)
            yield Tile(first, last, position - lowest, _cut(pieces, lowest, offset + last - start))


def _cut(pieces: list[tuple[int, int]], low: int, high: int) -> tuple[tuple[int, int], ...]:
    """The part of these stretches, laid end to end, from `low` to `high`."""
    kept, offset = [], 0
    for start, stop in pieces:
        first, last = max(low - offset, 0), min(high - offset, stop - start)
        if first < last:
            kept.append((start + first, start + last))
        offset += stop - start
    return tuple(kept)


def forward(
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    forest: Forest,
    rule: AttentionRule,
    sinks_H: Tensor | None,
    out_THD: Tensor,
    logsumexp_HT: Tensor,
    compute: torch.dtype,
) -> None:
    """Writes `out` and `logsumexp`; products are made in `compute`, everything else in the dtype of `logsumexp`."""
    num_kv_heads = key_TKD.shape[1]
    for tile in tiles(forest, query_THD.shape[1], rule.window):
        scores = _scores(tile, query_THD, key_TKD, rule, compute, logsumexp_HT.dtype)[0]
        logsumexp = torch.logsumexp(scores, -1)
        if sinks_H is not None:
            sinks = sinks_H.to(scores.dtype).repeat_interleave(tile.stop - tile.start)
            logsumexp = torch.logaddexp(logsumexp, sinks.view_as(logsumexp))
        weights = scores.sub_(logsumexp[..., None]).exp_().to(compute)
        out = torch.bmm(weights, tile.gather(value_TKD, compute))
        out_THD[tile.start : tile.stop] = _unstack(out, tile)
        logsumexp_HT[:, tile.start : tile.stop] = logsumexp.view(
            num_kv_heads, -1, tile.stop - tile.start
        ).flatten(0, 1)


def backward(
    grad_THD: Tensor,
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    delta_HT: Tensor,
    logsumexp_HT: Tensor,
    forest: Forest,
    rule: AttentionRule,
    query_grad: Tensor,
    key_grad: Tensor,
    value_grad: Tensor,
    compute: torch.dtype,
) -> None:
    """Writes the three gradients; `delta` is Σ grad · out of each row. Sums over queries are in `logsumexp`'s dtype."""
    accumulate = logsumexp_HT.dtype
    key_sum = torch.zeros(key_TKD.shape, dtype=accumulate, device=key_TKD.device)
    value_sum = torch.zeros(value_TKD.shape, dtype=accumulate, device=key_TKD.device)
    for tile in tiles(forest, query_THD.shape[1], rule.window):
        scores, capped, query, key = _scores(tile, query_THD, key_TKD, rule, compute, accumulate)
        weights = scores.sub_(_per_row(logsumexp_HT, tile, key.shape[0])).exp_()
        grad = _stack(grad_THD, tile, key.shape[0], compute)
        value = tile.gather(value_TKD, compute)
        tile.add(torch.bmm(weights.to(compute).transpose(1, 2), grad), value_sum)
        score_grad = torch.bmm(grad, value.transpose(1, 2)).to(accumulate)
        score_grad.sub_(_per_row(delta_HT, tile, key.shape[0])).mul_(weights)
        if capped is not None:
            score_grad.mul_(1 - capped.square_())
        score_grad = score_grad.mul_(rule.scale).to(compute)
        query_grad[tile.start : tile.stop] = _unstack(torch.bmm(score_grad, key), tile)
        tile.add(torch.bmm(score_grad.transpose(1, 2), query), key_sum)
    key_grad.copy_(key_sum)
    value_grad.copy_(value_sum)


def _scores(
    tile: Tile,
    query_THD: Tensor,
    key_TKD: Tensor,
    rule: AttentionRule,
    compute: torch.dtype,
    accumulate: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Masked scores [K, R, P], their tanh where they are soft-capped, and the stacked queries and keys they are of."""
    key_KPD = tile.gather(key_TKD, compute)
    query_KRD = _stack(query_THD, tile, key_KPD.shape[0], compute)
    scores = torch.bmm(query_KRD, key_KPD.transpose(1, 2)).to(accumulate).mul_(rule.scale)
    capped = None
    if rule.softcap is not None:
        capped = scores.div_(rule.softcap).tanh_()
        scores = capped * rule.softcap
    hidden = tile.mask(rule.window, scores.device)
    scores.view(-1, *hidden.shape).masked_fill_(hidden, -torch.inf)
    return scores, capped, query_KRD, key_KPD


def _stack(tensor_THD: Tensor, tile: Tile, num_kv_heads: int, dtype: torch.dtype) -> Tensor:
    """[K, R, D]: for each key/value head the rows of the first query head that shares it, then of the next."""
    rows = tensor_THD[tile.start : tile.stop].to(dtype).transpose(0, 1)
    return rows.reshape(num_kv_heads, -1, tensor_THD.shape[2])


def _unstack(rows_KRD: Tensor, tile: Tile) -> Tensor:
    """Back to [queries, H, D]."""
    return rows_KRD.reshape(-1, tile.stop - tile.start, rows_KRD.shape[2]).transpose(0, 1)


def _per_row(tensor_HT: Tensor, tile: Tile, num_kv_heads: int) -> Tensor:
    """[K, R, 1] in the order of `_stack`."""
    return tensor_HT[:, tile.start : tile.stop].reshape(num_kv_heads, -1, 1)
