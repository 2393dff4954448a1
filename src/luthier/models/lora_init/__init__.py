"""How low-rank adapters start: one file a way, named as in `lora.init`.

Each file has a function `begin(weight_MK, rank, scale, generator)` that gives A [R, K] and B [M, R] in fp32. Where B is
not zero, what they would add is taken off again (`LoraLinear.begin`), so that the model computes what it did.

A way that looks at the user's rows says in `NEEDS` whether it needs a layer's "inputs" or also the "gradients" of its
outputs, and has a class `Watch(outputs, rank, scale)` that sees them and gives the factors (`models/lora_watch.py`).

A way that compares a stored weight with the original one has a function `from_original(weight_MK, decoded_MK, rank,
scale)` (`models/lora_original.py`). Its start counts: it is not taken off.
"""

import importlib
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

Begin = Callable[[Tensor, int, float, torch.Generator | None], tuple[Tensor, Tensor]]


class Watching(Protocol):
    """What watches one layer."""

    def see(self, x_TK: Tensor, grad_TM: Tensor | None = None) -> None:
        """Takes in the inputs of a micro-batch and, if needed, the gradients of the outputs."""
        ...

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [R, K] and B [M, R] after all that was seen."""
        ...


def load_init(name: str) -> Begin:
    """The function of the file of that name."""
    return importlib.import_module(f"{__name__}.{name}").begin


def needs_rows(name: str) -> Literal["inputs", "gradients"] | None:
    """What this way must see of the user's rows."""
    return getattr(importlib.import_module(f"{__name__}.{name}"), "NEEDS", None)


def needs_originals(name: str) -> bool:
    """Whether this way compares stored weights with the original ones."""
    return hasattr(importlib.import_module(f"{__name__}.{name}"), "from_original")


def load_original(name: str) -> Callable[[Tensor, Tensor, int, float], tuple[Tensor, Tensor]]:
    """What makes the factors of the original weight, the decoded one, rank and scale."""
    return importlib.import_module(f"{__name__}.{name}").from_original


def load_watch(name: str) -> Callable[[int, int, float], Watching]:
    """What makes a watch of outputs, rank and scale."""
    return importlib.import_module(f"{__name__}.{name}").Watch
