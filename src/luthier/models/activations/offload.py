"""Lets layer inputs wait in the host's RAM between the forward and the backward pass.

Inputs leave in the order of the layers and are wanted back in the reverse order. Both ways run on a stream of
their own, from and to pinned buffers, so that they overlap with computing; when one is asked for, the one below it
is already sent for. On the CPU the same code copies within RAM: of no use but to test it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@dataclass(eq=False)
class Parked:
    """A tensor that waits in RAM."""

    host: Tensor
    device: torch.device
    below: "Parked | None"
    """The one that left before it and is wanted after it."""
    back: Tensor | None = None
    """On its way back to the device, or there."""
    taken: bool = False


class HostStore:
    """Sends tensors to RAM and back.

    Buffers in RAM are used again: pinning memory is slow. One is free again when its tensor is back.
    """

    def __init__(self) -> None:
        self._idle: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
        self._stream: torch.cuda.Stream | None = None
        self._last: Parked | None = None

    def put(self, tensor: Tensor) -> Parked:
        """Starts the way out. The caller may drop its tensor at once."""
        on_gpu = tensor.device.type == "cuda"
        host = self._buffer(tensor, on_gpu)
        if on_gpu:
            stream = self._stream_for(tensor.device)
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
            with torch.cuda.stream(stream):
                host.copy_(tensor.detach(), non_blocking=True)
            tensor.record_stream(stream)  # its memory is not reused before the copy is done
        else:
            host.copy_(tensor.detach())
        self._last = Parked(host, tensor.device, self._last)
        return self._last

    def take(self, parked: Parked) -> Tensor:
        """The tensor again, ready for the current stream; sends for the one below it. Once for each tensor."""
        assert not parked.taken, "its buffer in RAM may hold another tensor by now"
        self._fetch(parked)
        tensor = parked.back
        assert tensor is not None
        if tensor.device.type == "cuda":
            current = torch.cuda.current_stream(tensor.device)
            current.wait_stream(self._stream_for(tensor.device))
            tensor.record_stream(current)
        if parked.below is not None:
            self._fetch(parked.below)
        parked.back, parked.taken = None, True
        if self._last is parked:
            self._last = parked.below
        parked.below = None  # or the whole chain of a micro-batch would live as long as its last link
        return tensor

    def forget(self) -> None:
        """Drops what is still parked, after a pass that failed half-way."""
        self._last = None

    def _fetch(self, parked: Parked) -> None:
        if parked.back is not None or parked.taken:
            return
        if parked.device.type == "cuda":
            with torch.cuda.stream(self._stream_for(parked.device)):
                parked.back = parked.host.to(parked.device, non_blocking=True)
        else:
            parked.back = parked.host.clone()
        # Later copies into the buffer queue up behind this one on the same stream, so it is free from here on.
        self._idle.setdefault((parked.host.shape, parked.host.dtype), []).append(parked.host)

    def _buffer(self, tensor: Tensor, pinned: bool) -> Tensor:
        idle = self._idle.get((tensor.shape, tensor.dtype))
        if idle:
            return idle.pop()
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)

    def _stream_for(self, device: torch.device) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        return self._stream


def offloading(store: HostStore) -> saved_tensors_hooks:
    """A context: what autograd saves in it goes to `store`, but for weights and whole numbers."""

    def pack(tensor: Tensor) -> Any:
        leaves = tensor.is_floating_point() and not isinstance(tensor, torch.nn.Parameter)
        return store.put(tensor) if leaves else tensor.detach()

    def unpack(kept: Any) -> Tensor:
        return store.take(kept) if isinstance(kept, Parked) else kept

    return saved_tensors_hooks(pack, unpack)
