"""Where the answers of a running batch keep what was read: blocks of one cache, or a cache of transformers each.

Both read a prompt once for all its answers, then a token for each answer. The blocks are for models that can be taken
apart (models/decoding); they may be shared by several models of one base. What was read there stays known while there
is room, and a prompt of the same model that begins alike is read from where it parts. For all others each answer is
read by itself through transformers' forward: slow, but right.

Shape suffixes: P prompts, B answers, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.models.decoding.beginnings import shared
from luthier.models.decoding.cache import BLOCK, BlockCache, Stored, blocks_for
from luthier.models.decoding.decoder import BlockDecoder
from luthier.rollout.decoder import Decoder, Traits

WORTH_WAITING = 16
"""A prompt waits for another to be read first if that saves it so many tokens: a pass of its own has its price."""


@dataclass(frozen=True)
class Begin:
    """A prompt that is to be read: its tokens, and how many answers of how many tokens follow."""

    prompt: Sequence[int]
    num_answers: int
    limit: int


@dataclass(frozen=True)
class Begun:
    """Prompts that were read."""

    places: list[list[Any]]
    """For each, those of its answers."""
    logits_PV: Tensor
    """What follows."""
    known: list[int]
    """How many tokens of each did not have to be read anew."""


class Places(Protocol):
    """What a running batch asks of one model."""

    def fits(self, begin: Begin, pending: Sequence[Begin] = ()) -> bool:
        """Whether there is room for it now, beside others that are about to begin."""
        ...

    def ever_fits(self, begin: Begin) -> bool:
        """Whether there is room for it once nobody else is there."""
        ...

    def begin(self, begins: Sequence[Begin]) -> Begun:
        """Reads prompts."""
        ...

    def step(self, tokens: Sequence[int], places: Sequence[Any]) -> Tensor:
        """Reads a token for each answer. The logits that follow, [B, V], valid until the next call."""
        ...

    def release(self, place: Any, tokens: Sequence[int]) -> None:
        """Gives an answer's room back.

        Args:
            tokens: prompt and answer, of which not all need to have been read; none if that is of no use to others.
        """
        ...


class BlockPlaces:
    """Places in a cache of blocks.

    Args:
        num_blocks: all the cache holds, whoever uses it.
        owner: the model's name in the cache, under which what it read stays known; None: nothing does.
    """

    def __init__(
        self, decoder: BlockDecoder, num_blocks: int, device: torch.device, owner: str | None = None
    ):
        self._decoder, self._num_blocks, self._device = decoder, num_blocks, device
        self._owner = owner

    @property
    def cache(self) -> BlockCache:
        """The blocks."""
        return self._decoder.cache

    def fits(self, begin: Begin, pending: Sequence[Begin] = ()) -> bool:
        return sum(map(_cost, (begin, *pending))) <= self.cache.num_free

    def ever_fits(self, begin: Begin) -> bool:
        return _cost(begin) <= self._num_blocks

    def begin(self, begins: Sequence[Begin]) -> Begun:
        prompts = [begin.prompt for begin in begins]
        read: dict[int, tuple[Stored, int, Tensor]] = {}
        waiting = list(range(len(begins)))
        while waiting:
            first = self._first(prompts, waiting)
            waiting = [number for number in waiting if number not in first]
            self._read(prompts, first, read)
        found = [read[number] for number in range(len(begins))]
        places = [self._places(stored, begin) for (stored, _, _), begin in zip(found, begins, strict=True)]
        return Begun(places, torch.stack([logits_V for *_, logits_V in found]), [num for _, num, _ in found])

    def _first(self, prompts: Sequence[Sequence[int]], waiting: Sequence[int]) -> list[int]:
        """Which of the prompts are read now: those that would save little by waiting for another of them."""
        if self._owner is None or len(waiting) == 1:
            return list(waiting)
        first: list[int] = []
        for number in waiting:
            prompt = prompts[number]
            alike = max((shared(prompt[:-1], prompts[other]) for other in first), default=0)
            if alike < WORTH_WAITING or alike - self.cache.known(self._owner, prompt) < WORTH_WAITING:
                first.append(number)
        return first

    def _read(
        self,
        prompts: Sequence[Sequence[int]],
        numbers: Sequence[int],
        read: dict[int, tuple[Stored, int, Tensor]],
    ) -> None:
        """Reads these prompts at once, from where they part from what is known."""
        owner = self._owner
        begun = [Stored() if owner is None else self.cache.begin(owner, prompts[n]) for n in numbers]
        known = [stored.length for stored in begun]
        for number, stored in zip(numbers, begun, strict=True):
            self.cache.grow(stored, len(prompts[number]))
        logits_PV = self._decoder.read(
            begun, [prompts[n][num:] for n, num in zip(numbers, known, strict=True)]
        )
        for number, stored, num, logits_V in zip(numbers, begun, known, logits_PV, strict=True):
            if owner is not None and bool(logits_V.isfinite().all()):  # else others would be broken, too
                self.cache.remember(owner, stored, prompts[number])
            read[number] = stored, num, logits_V

    def _places(self, stored: Stored, begin: Begin) -> list[Stored]:
        """Places behind a prompt that was read; the last one takes its blocks over."""
        places = [*self.cache.fork(stored, begin.num_answers - 1), stored]
        for place in places:
            self.cache.grow(place, len(begin.prompt) + begin.limit)
        return places

    def step(self, tokens: Sequence[int], places: Sequence[Stored]) -> Tensor:
        return self._decoder.step(torch.tensor(tokens, device=self._device), places)

    def release(self, place: Stored, tokens: Sequence[int]) -> None:
        if self._owner is not None:
            self.cache.remember(self._owner, place, tokens)
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

    def begin(self, begins: Sequence[Begin]) -> Begun:
        places, logits = [], []
        for begin in begins:
            one = Decoder(self._model, self._traits, 1)
            logits.append(one.read(torch.tensor([list(begin.prompt)], device=self._model.device)))
            places.append([*(one.fork(1) for _ in range(begin.num_answers - 1)), one])
            for place in places[-1]:
                self._taken[id(place)] = _tokens(begin) // begin.num_answers
                self._free -= self._taken[id(place)]
        return Begun(places, torch.cat(logits), [0] * len(begins))

    def step(self, tokens: Sequence[int], places: Sequence[Decoder]) -> Tensor:
        device = self._model.device
        rows = zip(tokens, places, strict=True)
        return torch.cat([place.read(torch.tensor([[token]], device=device)) for token, place in rows])

    def release(self, place: Decoder, tokens: Sequence[int]) -> None:
        self._free += self._taken.pop(id(place))


def _tokens(begin: Begin) -> int:
    return begin.num_answers * (len(begin.prompt) + begin.limit)
