"""The engine that runs a GGUF file in llama.cpp, with the scheduling, the draws and the grammars of all our engines.

The prompt's ids are made by the tokenizer and the template that the file describes, as when it is trained or measured.
"""

from collections.abc import Mapping

import torch

from luthier.errors import ConfigError
from luthier.evaluate.llama_file import LlamaFile
from luthier.memory import free_memory
from luthier.models.inference import KnownWords
from luthier.rollout.live import Speaker
from luthier.rollout.llama_model import LlamaContext, LlamaModel
from luthier.rollout.llama_places import LlamaPlaces
from luthier.serve.batch_engine import BatchEngine
from luthier.serve.opened import MEMORY_SHARE, Asked, Opened, gguf_of
from luthier.serve.shelf import Defaults, Offered, offered_name

USUAL_TOKENS = 1024
"""Room for each answer where nothing else is said: llama.cpp takes all of it at the start."""


class LlamaEngine(BatchEngine):
    """Answers with a GGUF file in llama.cpp.

    Args:
        name: what requests call it.
        model, words: the file. What ends an answer is what llama.cpp takes for ends: what the file calls so, and tokens
            that are known as such by name.
        most_rows, cache_tokens, most_waiting: as in every engine with a batch.
    """

    def __init__(
        self,
        name: str,
        model: LlamaModel,
        words: KnownWords,
        *,
        most_rows: int,
        cache_tokens: int,
        most_waiting: int,
    ):
        super().__init__(most_rows=most_rows, cache_tokens=cache_tokens, most_waiting=most_waiting)
        self._name, self._model, self._words = name, model, words
        self._context: LlamaContext | None = None

    def _speakers(self) -> Mapping[str, Speaker]:
        context = LlamaContext(self._model, num_rows=self._most_rows, num_tokens=self._cache_tokens)
        self._context = context
        self.ways[self._name] = f"computed by {self._model.name}, all answers side by side"
        places = LlamaPlaces(context, self._most_rows)
        return {self._name: Speaker(places, frozenset(self._words.eos_token_ids), self._words.tokenizer)}

    def _close(self) -> None:
        if self._context is not None:
            self._context.close()
        self._model.close()


def opened(asked: Asked) -> Opened:
    """A file, or the one that was exported from a run, in this engine.

    Raises:
        ConfigError: there is no such file, or llama.cpp cannot hold so many answers.
        ModelError: llama.cpp or the reader of its tokenizer cannot read it.
    """
    if asked.adapters:
        raise ConfigError(
            "--adapter: llama.cpp serves a file as it is; serve the run itself with --engine native, or merge the "
            "adapter into the file with luthier export"
        )
    path = gguf_of(asked.name)
    model = LlamaModel(path)
    if asked.answers > model.most_rows:
        raise ConfigError(f"--answers {asked.answers}: llama.cpp holds at most {model.most_rows} at a time")
    file = LlamaFile.load(path)
    ends = tuple(sorted({*file.eos_token_ids, *model.ends}))
    words = KnownWords(file.tokenizer, file.template, ends, model.num_tokens)
    name = asked.called or offered_name(asked.name)
    tokens = asked.cache_tokens or _tokens_that_fit(model, asked.answers)
    engine = LlamaEngine(
        name, model, words, most_rows=asked.answers, cache_tokens=tokens, most_waiting=asked.queue
    )
    shelf = {name: Offered(name, words, Defaults(), model.context)}
    return Opened(shelf, engine, tokens, engine.ways)


def _tokens_that_fit(model: LlamaModel, answers: int) -> int:
    """As many tokens as a share of the free memory holds, and no more than usual answers take."""
    fitting = int(free_memory(torch.device("cpu")) * MEMORY_SHARE / model.bytes_of_token)
    return max(USUAL_TOKENS, min(fitting, answers * USUAL_TOKENS))
