"""Where the answers of a running batch keep what was read: blocks of one cache, or a cache of transformers each.

Both read a prompt once for all its answers, then a token for each answer. The blocks are for models that can be taken
apart (models/decoding); they may be shared by several models of one base. For all others each answer is read by itself
through transformers' forward: slow, but right.

Shape suffixes: P prompts, B answers, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.models.decoding.cache import BLOCK, BlockCache, Stored, blocks_for
from luthier.models.decoding.decoder import BlockDecoder
from luthier.rollout.decoder import Decoder, Traits


@dataclass(frozen=True)
class Begin:
    """A prompt that is to be read: its tokens, and how many answers of how many tokens follow."""

    prompt: Sequence[int]
    num_answers: int
    limit: int


class Places(Protocol):
    """What a running batch asks of one model."""

    def fits(self, begin: Begin, pending: Sequence[Begin] = ()) -> bool:
        """Whether there is room for it now, beside others that are about to begin."""
        ...

    def ever_fits(self, begin: Begin) -> bool:
        """Whether there is room for it once nobody else is there."""
        ...

    def begin(self, begins: Sequence[Begin]) -> tuple[list[list[Any]], Tensor]:
        """Reads prompts. For each the places of its answers, and the logits that follow: [P, V]."""
        ...

    def step(self, tokens: Sequence[int], places: Sequence[Any]) -> Tensor:
        """Reads a token for each answer. The logits that follow, [B, V], valid until the next call."""
        ...

    def release(self, place: Any) -> None:
        """Gives an answer's room back."""
        ...


class BlockPlaces:
    """Places in a cache of blocks. `num_blocks` is all the cache holds, whoever uses it."""

    def __init__(self, decoder: BlockDecoder, num_blocks: int, device: torch.device):
        self._decoder, self._num_blocks, self._device = decoder, num_blocks, device

    @property
    def cache(self) -> BlockCache:
        """The blocks."""
        return self._decoder.cache

    def fits(self, begin: Begin, pending: Sequence[Begin] = ()) -> bool:
        return sum(map(_cost, (begin, *pending))) <= self.cache.num_free

    def ever_fits(self, begin: Begin) -> bool:
        return _cost(begin) <= self._num_blocks

    def begin(self, begins: Sequence[Begin]) -> tuple[list[list[Stored]], Tensor]:
        read = [Stored() for _ in begins]
        for stored, begin in zip(read, begins, strict=True):
            self.cache.grow(stored, len(begin.prompt))
        logits_PV = self._decoder.read(read, [begin.prompt for begin in begins])
        return [self._places(stored, begin) for stored, begin in zip(read, begins, strict=True)], logits_PV

    def _places(self, stored: Stored, begin: Begin) -> list[Stored]:
        """Places behind a prompt that was read; the last one takes its blocks over."""
        places = [*self.cache.fork(stored, begin.num_answers - 1), stored]
        for place in places:
            self.cache.grow(place, len(begin.prompt) + begin.limit)
        return places

    def step(self, tokens: Sequence[int], places: Sequence[Stored]) -> Tensor:
        return self._decoder.step(torch.tensor(tokens, device=self._device), places)

    def release(self, place: Stored) -> None:
        self.cache.release(place)


def _cost(begin: Begin) -> int:
    """Blocks that a prompt with its answers takes; its whole blocks are shared."""
    length = len(begin.prompt)
    own = blocks_for(length + begin.limit) - length // BLOCK
    return length // BLOCK + begin.num_answers * own


class PlainPlaces:
    """An answer each in a cache of its own, read by the model's own forward."""

    def __init__(self, model: PreTrainedModel, traits: Traits, num_tokens: int):
        self._model, self._traits, self._free, self._total = model, traits, num_tokens, num_tokens
        self._taken: dict[int, int] = {}

    def fits(self, begin: Begin, pending: Sequence[Begin] = ()) -> bool:
        return sum(map(_tokens, (begin, *pending))) <= self._free

    def ever_fits(self, begin: Begin) -> bool:
        return _tokens(begin) <= self._total

    def begin(self, begins: Sequence[Begin]) -> tuple[list[list[Decoder]], Tensor]:
        places, logits = [], []
        for begin in begins:
            one = Decoder(self._model, self._traits, 1)
            logits.append(one.read(torch.tensor([list(begin.prompt)], device=self._model.device)))
            places.append([*(one.fork(1) for _ in range(begin.num_answers - 1)), one])
            for place in places[-1]:
                self._taken[id(place)] = _tokens(begin) // begin.num_answers
                self._free -= self._taken[id(place)]
        return places, torch.cat(logits)

    def step(self, tokens: Sequence[int], places: Sequence[Decoder]) -> Tensor:
        device = self._model.device
        rows = zip(tokens, places, strict=True)
        return torch.cat([place.read(torch.tensor([[token]], device=device)) for token, place in rows])

    def release(self, place: Decoder) -> None:
        self._free += self._taken.pop(id(place))


def _tokens(begin: Begin) -> int:
    return begin.num_answers * (len(begin.prompt) + begin.limit)
