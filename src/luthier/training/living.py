"""Counts the bytes of tensors that are alive at once while something runs: what it takes for a moment."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from luthier.optim.base import Algorithm
from luthier.optim.pieces import About, Piece
from luthier.optim.stepper import Stepper

UNKNOWN = 6
"""Tensors of a weight's size that an update is taken to make, where it cannot be run without numbers."""


class _Living(TorchDispatchMode):
    """Follows every tensor that operations give out. Views and what is changed in place count with their storage."""

    def __init__(self, there: Iterable[Tensor]):
        super().__init__()
        self._there = {tensor.untyped_storage()._cdata for tensor in there}
        self._holders: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        return made

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._there:
            return
        if not self._holders.get(key):
            self._holders[key], self._sizes[key] = 0, storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
        self._holders[key] += 1
        weakref.finalize(tensor, self._drop, key)

    def _drop(self, key: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            self.now -= self._sizes.pop(key)


def most_alive(work: Callable[[], Any], there: Iterable[Tensor]) -> int:
    """The most bytes of tensors that are alive at once during `work`, beside those that are there already."""
    counter = _Living(there)
    with counter:
        work()
    return counter.most


def update_bytes(optimizer: Stepper) -> int:
    """What the optimizer's update takes for a moment: each kind of weight is updated once, without numbers.

    Each weight counts alone, but for those that lie end to end, which are updated as one.
    """
    most, seen = 0, set()
    for parameter, algorithm, about in optimizer.updated():
        wide = torch.promote_types(parameter.dtype, torch.float32)
        key = type(algorithm), parameter.shape, about.table, about.head_rows
        if key in seen:
            continue
        seen.add(key)
        most = max(most, *(_of_one(algorithm, parameter.shape, wide, about, step) for step in (1, 2)))
    return most


def _of_one(algorithm: Algorithm, shape: torch.Size, dtype: torch.dtype, about: About, step: int) -> int:
    """The same of one weight in its first update, or in the second: some begin otherwise than they go on."""
    weight = torch.empty(shape, dtype=dtype, device="meta")
    state = algorithm.start(weight, about)
    piece = Piece(weight, torch.empty_like(weight), state, torch.full((), float(step)), about)
    there = [weight, piece.gradient, *state.values()]
    try:
        return most_alive(lambda: algorithm.update([piece], 0.1, 0.1), there)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):  # it looks at numbers
        return UNKNOWN * weight.nbytes
