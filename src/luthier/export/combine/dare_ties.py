"""DARE, then the signs of TIES: entries dropped at random (arXiv:2311.03099), those that agree averaged
(arXiv:2306.01708).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.export.combine.dare import thinned
from luthier.export.combine.ties import agreed


def combine(
    updates: Sequence[Tensor], weights: Sequence[float], density: float, generator: torch.Generator
) -> Tensor:
    """The share `density` of each update stays, by chance."""
    return agreed([thinned(update, density, generator) for update in updates], weights)
