"""What a low-rank update makes of a weight.

Shape suffixes: K inputs, M outputs, R rank.
"""

import math

import torch
from torch import Tensor


def lora_scale(rank: int, alpha: float, rslora: bool) -> float:
    """Factor on the update B·A: alpha / r, or alpha / √r when rank-stabilised (arXiv:2312.03732)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def low_rank_update(a_RK: Tensor, b_MR: Tensor, scale: float, transposed: bool) -> Tensor:
    """The change of the weight that an adapter stands for: s · B·A, [M, K], or [K, M] if `transposed`."""
    delta_MK = (b_MR @ a_RK) * scale
    return delta_MK.T if transposed else delta_MK


def add_update(weight: Tensor, delta: Tensor) -> Tensor:
    """Weight plus update, summed in at least fp32 and rounded once to the weight's dtype."""
    return _wide_sum(weight, delta).to(weight.dtype)


def updated(
    weight: Tensor,
    factors: tuple[Tensor, Tensor],
    scale: float,
    transposed: bool,
    magnitude_M: Tensor | None = None,
) -> Tensor:
    """The weight with its update in effect, in its own layout and rounded once to its dtype.

    With `magnitude_M` (DoRA, arXiv:2402.09353) each output's row is made that long; no gradient goes through the
    length that it had.
    """
    return updated_wide(weight, factors, scale, transposed, magnitude_M).to(weight.dtype)


def updated_wide(
    weight: Tensor,
    factors: tuple[Tensor, Tensor],
    scale: float,
    transposed: bool,
    magnitude_M: Tensor | None = None,
) -> Tensor:
    """The same, not rounded: in at least fp32."""
    total = _wide_sum(weight, low_rank_update(*factors, scale, transposed))
    if magnitude_M is None:
        return total
    length = torch.linalg.vector_norm(total.detach(), dim=0 if transposed else 1)
    gain_M = magnitude_M.to(total.dtype) / length
    return total * (gain_M if transposed else gain_M[:, None])


def _wide_sum(weight: Tensor, delta: Tensor) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.to(wide) + delta.to(wide)
