"""A weight in few bits as a part of a model: plain buffers that move with it."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from luthier.kernels.quant.base import Stored

PREFIX = "stored_"


class StoredWeight(nn.Module):
    """The parts of a stored weight [M, K] as buffers. Modules that share a weight share one of these."""

    def __init__(self, stored: Stored):
        super().__init__()
        self._parts = dict(stored.parts)
        self.stored = Stored(stored.scheme, self._parts, stored.shape, stored.dtype)
        """The weight as it is stored; follows the buffers when they are moved."""
        self.shape, self.dtype = stored.shape, stored.dtype
        for name, part in stored.parts.items():
            self.register_buffer(PREFIX + name, part)

    @property
    def weight(self) -> Tensor:
        """The decoded weight [M, K], a new tensor each time."""
        return self.stored.weight()

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.stored.device

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, {self.stored.scheme}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the parts, but never changes their types: codes and scales mean nothing in another one."""
        super()._apply(fn, recurse)
        for name, part in self._parts.items():
            if (moved := self.get_buffer(PREFIX + name)).dtype != part.dtype:
                moved = self._buffers[PREFIX + name] = part.to(moved.device)
            self._parts[name] = moved
        return self
