"""The weighted sum of the updates."""

from collections.abc import Sequence

import torch
from torch import Tensor


def combine(
    updates: Sequence[Tensor], weights: Sequence[float], density: float, generator: torch.Generator
) -> Tensor:
    """Σ weight · update."""
    return sum((w * update for w, update in zip(weights, updates, strict=True)), torch.zeros_like(updates[0]))
