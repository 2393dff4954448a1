"""The engine that computes models of transformers: from their parts where that is possible, else by their forward."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack

from transformers import PreTrainedModel

from luthier.memory import free_memory
from luthier.models.compat import plain_attention
from luthier.models.decoding.bound import bind
from luthier.models.decoding.cache import BlockCache, blocks_for
from luthier.models.decoding.check import check
from luthier.models.decoding.decoder import BlockDecoder
from luthier.models.inference import Loaded
from luthier.rollout.decoder import traits_of
from luthier.rollout.live import Speaker
from luthier.rollout.places import BlockPlaces, Places, PlainPlaces
from luthier.serve.batch_engine import BatchEngine
from luthier.serve.opened import MEMORY_SHARE, Asked, Opened
from luthier.serve.shelf import OfferedModel, bytes_of_token, load_shelf

LEAST_TOKENS = 1024
"""Room that is made in any case where nothing else is said."""


class NativeEngine(BatchEngine):
    """Answers with models of transformers, one batch for all that share a base.

    Args:
        models: by name; each a module tree of its own, whose weights may be shared.
        most_rows, cache_tokens, most_waiting: as in every engine with a batch.
        share_prompts: whether what was read stays known, while there is room, to prompts that begin alike.
    """

    def __init__(
        self,
        models: Mapping[str, Loaded],
        *,
        most_rows: int,
        cache_tokens: int,
        most_waiting: int,
        share_prompts: bool = True,
    ):
        super().__init__(most_rows=most_rows, cache_tokens=cache_tokens, most_waiting=most_waiting)
        self._models, self._share_prompts = models, share_prompts

    def _computing(self) -> AbstractContextManager[object]:
        with ExitStack() as stack:
            for loaded in self._models.values():
                stack.enter_context(plain_attention(loaded.model))
            return stack.pop_all()

    def _speakers(self) -> dict[str, Speaker]:
        speakers: dict[str, Speaker] = {}
        cache: BlockCache | None = None
        for name, loaded in self._models.items():
            with plain_attention(loaded.model):
                places = self._places(name, loaded.model, cache)
            cache = places.cache if isinstance(places, BlockPlaces) else cache
            speakers[name] = Speaker(places, frozenset(loaded.eos_token_ids), loaded.tokenizer)
        return speakers

    def _places(self, name: str, model: PreTrainedModel, cache: BlockCache | None) -> Places:
        checked = check(model)
        if checked.shape is None:
            self.ways[name] = f"one answer after the other through transformers' forward: {checked.reason}"
            return PlainPlaces(model, traits_of(model, 0), self._cache_tokens)
        self.ways[name] = "decoded from its parts, all answers side by side"
        blocks = max(1, blocks_for(self._cache_tokens))
        decoder = BlockDecoder(bind(model), checked.shape, blocks, cache)
        return BlockPlaces(decoder, blocks, model.device, name if self._share_prompts else None)


def opened(asked: Asked) -> Opened:
    """A run or a model, and adapters on it, in this engine.

    Raises:
        LuthierError: one of them cannot be loaded, or two have the same name.
    """
    shelf = load_shelf(asked.name, asked.adapters, called=asked.called, offline=asked.offline)
    tokens = asked.cache_tokens or _tokens_that_fit(shelf, asked.answers)
    engine = NativeEngine(
        {name: offered.loaded for name, offered in shelf.items()},
        most_rows=asked.answers,
        cache_tokens=tokens,
        most_waiting=asked.queue,
        share_prompts=asked.share_prompts,
    )
    return Opened(shelf, engine, tokens, engine.ways)


def _tokens_that_fit(shelf: Mapping[str, OfferedModel], answers: int) -> int:
    """As many tokens as a share of the free memory holds, and no more than all answers at full length."""
    first = next(iter(shelf.values()))
    model = first.loaded.model
    fitting = int(free_memory(model.device) * MEMORY_SHARE / bytes_of_token(model))
    return max(LEAST_TOKENS, min(fitting, answers * (first.context or 8192)))
