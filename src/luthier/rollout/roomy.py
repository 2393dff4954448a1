"""A cache layer with room at its end, so that a new token is written in place.

transformers' own layer joins old and new keys and values into new tensors: each token of each row then copies
the whole cache. That is a good part of a step with a small model, many rows and a long context.
"""

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

MIN_ROOM = 32
"""Tokens that a grown buffer has room for at least; a quarter of its length if that is more."""


class RoomyLayer(DynamicLayer):
    """Keys and values, [B, heads, tokens, size] each, as the beginning of larger buffers."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._written: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes new keys and values behind the old ones; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        # Other methods of the layer, which pick rows or crop, put new tensors in place of the views.
        if self._buffers is None or self.keys is not self._written or end > self._buffers[0].shape[-2]:
            self._buffers = _roomy(self.keys, key_states, end), _roomy(self.values, value_states, end)
        keys, values = self._buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        self._written = self.keys
        return self.keys, self.values


def _roomy(old: Tensor | None, new: Tensor, end: int) -> Tensor:
    """A buffer for `end` tokens and some more, which begins with the old ones."""
    buffer = new.new_empty(*new.shape[:2], end + max(MIN_ROOM, end // 4), new.shape[3])
    if old is not None and old.numel():
        buffer[:, :, : old.shape[2]] = old
    return buffer


def make_room(cache: Cache) -> None:
    """Gives room to every layer of a filled cache that joins tensors for each token."""
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[place] = roomy = RoomyLayer()
            vars(roomy).update(vars(layer))
