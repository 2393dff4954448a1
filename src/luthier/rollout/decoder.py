"""A batch of sequences that a model has read, and the way to read on: HF's key-value cache and its limits.

Caches differ from model to model. What one allows is found by looking at the cache that the model makes,
never by the model's name:

- only attention layers: rows of unequal length share a batch, padded on the left;
- only attention layers that keep everything: a common prefix is read once, and the rows go on behind it;
- recurrent or convolutional layers: rows of one length only, where padding cannot enter the state;
- no cache that rows can be taken from: the sequence is read anew for each token. Slow, but right.

Shape suffixes: B rows, T new tokens, L tokens read so far, V vocabulary.
"""

import copy
import inspect
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, cache_utils
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
)

from luthier.rollout.roomy import make_room

EMPTY: tuple[type, ...] = tuple(filter(None, [getattr(cache_utils, "DummyLayer", None)]))
"""Cache layers that hold nothing; transformers has them from 5.20 on, and vLLM may hold it at an older one."""


@dataclass(frozen=True)
class Traits:
    """What a model's forward takes and its cache allows."""

    cache: str | None
    """The argument that the cache goes in by; None: no cache."""
    arguments: frozenset[str]
    """Names of forward's arguments."""
    pads: bool
    """Rows of unequal length may share a batch."""
    shares_prefix: bool
    """A prefix that was read once may be continued by rows of unequal length."""
    max_positions: int | None
    """Most tokens that the model can read; None: it has no limit."""


@torch.no_grad()
def traits_of(model: PreTrainedModel, token: int) -> Traits:
    """Reads one token and looks at the cache that the model makes."""
    output = model(input_ids=torch.tensor([[token]], device=model.device), use_cache=True)
    found = {name: getattr(output, name, None) for name in ("past_key_values", "cache_params")}
    caches = {name: cache for name, cache in found.items() if isinstance(cache, Cache)}
    arguments = frozenset(inspect.signature(model.forward).parameters)
    layers = [layer for cache in caches.values() for layer in cache.layers]
    own_state = any(
        type(cache).__module__ != Cache.__module__ for cache in caches.values()
    )  # beside its layers
    # A model without position_ids finds positions by itself, and may count the padding.
    pads = (
        bool(layers)
        and not own_state
        and {"position_ids", "attention_mask"} <= arguments
        and all(map(_is_attention, layers))
    )
    return Traits(
        cache=next(iter(caches), None),
        arguments=arguments,
        pads=pads,
        # Windows count cache slots, so a gap between prefix and row would take part of the window.
        shares_prefix=pads and all(type(layer) in (DynamicLayer, *EMPTY) for layer in layers),
        max_positions=max_positions(model),
    )


def max_positions(model: PreTrainedModel) -> int | None:
    """Most tokens that the model can read; None: its configuration names no limit."""
    return positions_of(model.config)


def positions_of(config: Any) -> int | None:
    """Most tokens that a model of this configuration can read; None: it names no limit."""
    most = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def _is_attention(layer: object) -> bool:
    attention = isinstance(layer, CacheLayerMixin) and not isinstance(layer, LinearAttentionCacheLayerMixin)
    return attention or isinstance(layer, EMPTY)


class Decoder:
    """Rows that a model has read so far. `read` reads on and returns the logits that follow."""

    def __init__(self, model: PreTrainedModel, traits: Traits, num_rows: int):
        self._model = model
        self._traits = traits
        self._cache: Any = None
        device = model.device
        self._tokens_BL = torch.empty(num_rows, 0, dtype=torch.int64, device=device)  # only without a cache
        self._real_BL = torch.empty(num_rows, 0, dtype=torch.bool, device=device)
        self._length_B = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._padded = False

    def fork(self, num_rows: int) -> Self:
        """A new batch, each row of which goes on where the single row of this one stands."""
        assert len(self._length_B) == 1
        other = copy.copy(self)
        other._cache = copy.deepcopy(self._cache)
        other.select(torch.zeros(num_rows, dtype=torch.int64, device=self._length_B.device))
        return other

    def select(self, index: Tensor) -> None:
        """Makes the batch out of these rows of it, in this order; a row may be left out or come again."""
        self._tokens_BL = self._tokens_BL[index]
        self._real_BL = self._real_BL[index]
        self._length_B = self._length_B[index]
        if self._cache is not None:
            self._cache.reorder_cache(index)

    def read(self, tokens_BT: Tensor, pad_B: Tensor | None = None) -> Tensor:
        """Reads tokens, the first `pad_B` of each row being padding. Logits after the last: [B, V]."""
        num_rows, num_new = tokens_BT.shape
        offset_BT = torch.arange(num_new, device=tokens_BT.device).expand(num_rows, -1)
        if pad_B is not None:
            self._padded = True
            offset_BT = offset_BT - pad_B[:, None]
        position_BT = self._length_B[:, None] + offset_BT.clamp(min=0)
        if self._traits.max_positions is not None:
            position_BT = position_BT.clamp(max=self._traits.max_positions - 1)  # rows that are done and stay
        self._length_B = self._length_B + offset_BT[:, -1] + 1
        self._real_BL = torch.cat([self._real_BL, offset_BT >= 0], dim=1)
        return self._forward(tokens_BT, position_BT)

    def _forward(self, tokens_BT: Tensor, position_BT: Tensor) -> Tensor:
        traits = self._traits
        inputs: dict[str, Any] = {"input_ids": tokens_BT, "use_cache": traits.cache is not None}
        if traits.cache is None:
            self._tokens_BL = torch.cat([self._tokens_BL, tokens_BT], dim=1)
            inputs["input_ids"] = self._tokens_BL
        else:
            inputs[traits.cache] = self._cache
            if "position_ids" in traits.arguments:
                inputs["position_ids"] = position_BT
            if self._padded:
                inputs["attention_mask"] = self._real_BL
        if "logits_to_keep" in traits.arguments:
            inputs["logits_to_keep"] = 1
        output = self._model(**inputs)
        if traits.cache is not None and self._cache is None:
            self._cache = output[traits.cache]
            make_room(self._cache)
        return output.logits[:, -1].float()
