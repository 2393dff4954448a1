"""Metrics that are the least or the greatest number of a step: sums cannot carry them, so they go beside.

Those that are to be least are turned round, so that all are greatest numbers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from luthier.methods.base import Method


def signed_extremes(method: Method, metrics: Mapping[str, Tensor]) -> Tensor:
    """What a batch's metrics say of the extremes, in fp64, those that are to be least turned round."""
    values = [-metrics[name] if kind == "min" else metrics[name] for name, kind in method.extremes.items()]
    return torch.stack([value.detach().double() for value in values])


def greatest(method: Method, found: Iterable[Sequence[float]]) -> dict[str, float]:
    """The extremes by name, of what several batches or ranks have found; nothing of those that none has."""
    highest = [max(values) for values in zip(*found, strict=True)]
    told = zip(method.extremes.items(), highest, strict=True)
    return {name: -value if kind == "min" else value for (name, kind), value in told if value > -math.inf}
