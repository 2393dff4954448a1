"""How several updates of one weight become one: one file a way, named as in `luthier combine --by`.

Each file has a function `combine(updates, weights, density, generator)`: the updates s·B·A [M, K] in fp32 with a weight
each; what becomes of them.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Combine = Callable[[Sequence[Tensor], Sequence[float], float, torch.Generator], Tensor]


def known_ways() -> list[str]:
    """The names of the files."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_")


def load_way(name: str) -> Combine:
    """The function of the file of that name."""
    return importlib.import_module(f"{__name__}.{name}").combine
