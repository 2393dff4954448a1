"""DARE: drop entries at random and rescale the others, then add up (Yu et al., 2023, arXiv:2311.03099)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.export.combine import linear


def combine(
    updates: Sequence[Tensor], weights: Sequence[float], density: float, generator: torch.Generator
) -> Tensor:
    """The share `density` of each update stays, by chance, and is divided by it: the same in expectation."""
    return linear.combine(
        [thinned(update, density, generator) for update in updates], weights, 1.0, generator
    )


def thinned(update: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """The update with entries dropped at random, the others divided by the share that stays."""
    stays = torch.rand(update.shape, generator=generator) < density
    return torch.where(stays, update / density, 0.0)
