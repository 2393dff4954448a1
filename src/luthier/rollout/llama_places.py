"""Places of a running batch in llama.cpp: a row each, in one store of keys and values.

A prompt is read once and given to the rows of all its answers, which count its tokens once.

Shape suffixes: P prompts, B answers, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from luthier.rollout.llama_model import LlamaContext, Read
from luthier.rollout.places import Begin, Begun


@dataclass(eq=False)
class _Prompt:
    """A prompt that was read, as long as one of its answers is there."""

    num_tokens: int
    answers: int


@dataclass(eq=False)
class LlamaPlace:
    """One answer."""

    row: int
    length: int
    """Tokens that were read for it, the prompt's among them."""
    limit: int
    """Tokens of its own that there is room for."""
    prompt: _Prompt


class LlamaPlaces:
    """Rows of a context, `num_rows` of them, all free."""

    def __init__(self, context: LlamaContext, num_rows: int):
        self._context, self._num_rows = context, num_rows
        self._rows, self._free = list(range(num_rows)), context.num_tokens

    def fits(self, begin: Begin, pending: Sequence[Begin] = ()) -> bool:
        some = (begin, *pending)
        answers = sum(one.num_answers for one in some)
        return sum(map(_cost, some)) <= self._free and answers <= len(self._rows)

    def ever_fits(self, begin: Begin) -> bool:
        return _cost(begin) <= self._context.num_tokens and begin.num_answers <= self._num_rows

    def begin(self, begins: Sequence[Begin]) -> Begun:
        places = [self._taken(begin) for begin in begins]
        reads = [Read(own[0].row, 0, begin.prompt) for own, begin in zip(places, begins, strict=True)]
        logits_PV = self._context.read(reads)
        for first, *others in places:
            for other in others:
                self._context.share(first.row, other.row)
        return Begun(places, logits_PV, [0] * len(begins))

    def step(self, tokens: Sequence[int], places: Sequence[LlamaPlace]) -> Tensor:
        pairs = list(zip(tokens, places, strict=True))
        logits_BV = self._context.read([Read(place.row, place.length, [token]) for token, place in pairs])
        for place in places:
            place.length += 1
        return logits_BV

    def release(self, place: LlamaPlace, tokens: Sequence[int]) -> None:
        self._context.forget(place.row)
        self._rows.append(place.row)
        place.prompt.answers -= 1
        self._free += place.limit + (0 if place.prompt.answers else place.prompt.num_tokens)

    def _taken(self, begin: Begin) -> list[LlamaPlace]:
        """Rows for the answers to a prompt."""
        self._free -= _cost(begin)
        length = len(begin.prompt)
        prompt = _Prompt(length, begin.num_answers)
        return [LlamaPlace(self._rows.pop(), length, begin.limit, prompt) for _ in range(begin.num_answers)]


def _cost(begin: Begin) -> int:
    """Tokens that a prompt with its answers takes."""
    return len(begin.prompt) + begin.num_answers * begin.limit
