"""Attention of a stream over keys and values that stand before all of it and belong to no token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.kernels.attention import AttentionRule, Forest, forest_attention


@dataclass(frozen=True)
class StatesFirst(Forest):
    """A forest whose root is known by its keys and values alone, of each layer, [1, K, P, D] both."""

    states: tuple[tuple[Tensor, Tensor], ...] = ()


def attend_behind(
    layer: int,
    query_HTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    forest: StatesFirst,
    rule: AttentionRule,
    sinks_H: Tensor | None,
) -> Tensor:
    """`forest_attention` of one layer with the root's keys and values before the tokens'. [T, H, D]."""
    before_KPD, of_them_KPD = (state[0].to(key_KTD.dtype) for state in forest.states[layer])
    length = before_KPD.shape[1]
    nobody_HPD = query_HTD.new_zeros(query_HTD.shape[0], length, query_HTD.shape[2])
    out = forest_attention(
        torch.cat([nobody_HPD, query_HTD], 1),
        torch.cat([before_KPD, key_KTD], 1),
        torch.cat([of_them_KPD, value_KTD], 1),
        forest,
        rule,
        sinks_H,
    )
    return out[length:]
