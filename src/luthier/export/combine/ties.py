"""TIES: trim, elect a sign, average those that agree (Yadav et al., 2023, arXiv:2306.01708).

Of each update the largest entries stay. The sign of an entry is that of the weighted sum of what stayed; the result is
the weighted mean of the updates that have this sign there, times the sum of all weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def combine(
    updates: Sequence[Tensor], weights: Sequence[float], density: float, generator: torch.Generator
) -> Tensor:
    """The share `density` of each update stays, by size."""
    return agreed([trimmed(update, density) for update in updates], weights)


def trimmed(update: Tensor, density: float) -> Tensor:
    """The update with all but its largest entries set to zero."""
    number = round(density * update.numel())
    if number == 0:
        return torch.zeros_like(update)
    least = update.abs().flatten().kthvalue(update.numel() - number + 1).values
    return torch.where(update.abs() >= least, update, 0.0)


def agreed(updates: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean of those that have the sign of the sum, entry by entry, times the sum of the weights."""
    total = sum(
        (w * update for w, update in zip(weights, updates, strict=True)), torch.zeros_like(updates[0])
    )
    kept, of = torch.zeros_like(total), torch.zeros_like(total)
    for weight, update in zip(weights, updates, strict=True):
        agrees = (weight * update).sign() == total.sign()
        kept += torch.where(agrees, weight * update, 0.0)
        of += torch.where(agrees & (update != 0), abs(weight), 0.0)
    return kept / of.clamp(min=torch.finfo(of.dtype).tiny) * sum(abs(weight) for weight in weights)
