"""Buffers for intermediate results, kept between calls.

A fresh tensor of some megabytes costs the operating system a page fault for each 4 KB, and the caches their
contents. What lives only inside one half of a layer is therefore written where the layer before it wrote.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


class Workspace:
    """Named buffers, each as large as the largest request so far.

    What is taken is valid until the same name is taken again, so names must be unique among what is in use at
    one time. Contents are whatever was there before.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        self._holders: dict[tuple[str, torch.dtype, torch.device], object] = {}
        self._outgrown: list[Tensor] = []  # on GPUs only: a recorded graph writes to where it wrote before

    def take(self, name: str, *size: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A contiguous tensor of this size, on the device of `like` and of its dtype unless told otherwise."""
        key = name, dtype or like.dtype, like.device
        wanted = math.prod(size)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < wanted:
            if buffer is not None and buffer.is_cuda:
                self._outgrown.append(buffer)
            buffer = self._buffers[key] = torch.empty(wanted, dtype=key[1], device=key[2])
            self._holders.pop(key, None)
        return buffer[:wanted].view(size)

    def hold(
        self, name: str, holder: object, *size: int, like: Tensor, fill: Callable[[Tensor], None]
    ) -> Tensor:
        """The buffer `name` as `fill` writes it, which is done only if `holder` was not the last to hold it."""
        buffer, key = self.take(name, *size, like=like), (name, like.dtype, like.device)
        if self._holders.get(key) is not holder:
            self._holders.pop(key, None)  # should it fail half-way
            fill(buffer)
            self._holders[key] = holder
        return buffer

    def forget(self, name: str, holder: object) -> None:
        """What the holder has in the buffer is out of date."""
        for key in [key for key, held_by in self._holders.items() if key[0] == name and held_by is holder]:
            del self._holders[key]

    @property
    def num_bytes(self) -> int:
        """Memory that the buffers hold."""
        buffers = [*self._buffers.values(), *self._outgrown]
        return sum(buffer.numel() * buffer.element_size() for buffer in buffers)

    def clear(self) -> None:
        """Gives the memory back."""
        self._buffers.clear()
        self._holders.clear()
        self._outgrown.clear()
