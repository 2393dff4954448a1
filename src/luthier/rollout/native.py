"""Generation with the model itself, in batches, on any device.

Two ways to the same answers. Models that can be taken apart (models/decoding) are decoded from their parts, rows of
any lengths side by side (continuous.py); all others go through transformers' forward and key-value cache
(padded.py). Which way a model goes is found by comparing a few logits with its own forward.

The log-probabilities that come with an answer are the model's own, those that a training forward over prompt and
answer gives. Rows do not see each other: an answer is the same alone and in any batch, up to rounding.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from transformers import PreTrainedModel

from luthier.errors import ConfigError
from luthier.models.compat import plain_attention
from luthier.models.decoding.bound import bind
from luthier.models.decoding.check import Checked, check
from luthier.rollout.continuous import ContinuousBatch
from luthier.rollout.decoder import Traits, max_positions, traits_of
from luthier.rollout.padded import PaddedBatches
from luthier.rollout.rows import Completion, Plan, Row, push_all
from luthier.rollout.sampling import SamplingSettings
from luthier.rollout.text import Detokenizer

__all__ = ["Completion", "NativeGenerator", "Progress"]

Progress = Callable[[int, int], None]


class NativeGenerator:
    """Generates answers with a causal LM of transformers, adapters in it or not."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_ids: Collection[int],
        pad_token_id: int = 0,
        tokenizer: Detokenizer | None = None,
        attention: Callable[[PreTrainedModel], AbstractContextManager[object]] = plain_attention,
        batch_tokens: int = 16384,
        batch_rows: int = 64,
        take_apart: bool = True,
    ):
        """`attention` makes the context in which the model uses transformers' own attention. A batch holds at
        most `batch_rows` answers and `batch_tokens` tokens, as if all answers took their full length.
        `take_apart=False` always goes through transformers' forward."""
        self._model = model
        self._eos = frozenset(eos_token_ids)
        self._pad = pad_token_id
        self._tokenizer = tokenizer
        self._attention = attention
        self._batch = {"batch_tokens": batch_tokens, "batch_rows": batch_rows}
        self._take_apart = take_apart
        self._known_traits: Traits | None = None
        self._checked: tuple[tuple[type, ...], Checked] | None = None

    @property
    def max_positions(self) -> int | None:
        """Most tokens of prompt and answer together; None: the model has no limit."""
        return max_positions(self._model)

    @property
    def way(self) -> str:
        """One sentence for people: how this model generates, and why not faster. Looks at the model if need be."""
        with self._ready():
            checked = self._check()
        if checked.shape is not None:
            return "The model is decoded from its parts."
        return f"The model generates through transformers' forward: {checked.reason}."

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        *,
        numbers: Sequence[int] | None = None,
        limits: Sequence[int] | None = None,
        progress: Progress | None = None,
        finished: Callable[[int, Completion], None] | None = None,
    ) -> list[list[Completion]]:
        """Answers to each prompt, in order: [prompt][sample].

        `numbers` are the prompts' numbers in the random draws, their places in the list if absent: with them
        a prompt gets the same answer whatever list it is in. `limits` has the most tokens that an answer
        to each prompt may have, where that is fewer than `max_new_tokens`. `progress` is told (answers done, all
        answers), `finished` each answer with its prompt's place as soon as it is done.

        Raises:
            DataError: a prompt is empty or fills the model's context.
            ConfigError: stop strings without a tokenizer to find them with.
            RunError: the model's logits are not finite.
        """
        if not prompts:
            return []
        reader = self._reader(settings) if settings.stop else None
        plan = Plan.of(prompts, numbers, settings, self.max_positions, limits)
        rows = plan.rows(reader)
        done, open_rows = 0, rows
        with self._ready():
            for number in self._steps(plan, rows):
                done += number
                if number and finished:
                    for row in (row for row in open_rows if row.finish is not None):
                        finished(row.prompt, row.completion(self._tokenizer))
                    open_rows = [row for row in open_rows if row.finish is None]
                if number and progress:
                    progress(done, len(rows))
        results: list[list[Completion]] = [[] for _ in prompts]
        for row in sorted(rows, key=lambda row: row.sample):
            results[row.prompt].append(row.completion(self._tokenizer))
        return results

    def stream(self, prompt: Sequence[int], settings: SamplingSettings) -> Iterator[str]:
        """One answer's text while it is generated: whole characters, cut before a stop string, joined the
        same as the text of `generate`. Between pieces the model is in the state that it was in before."""
        if settings.num_samples != 1:
            raise ConfigError(
                f"num_samples is {settings.num_samples}, but only one answer can be streamed; set it to 1"
            )
        reader = self._reader(settings)
        plan = Plan.of([prompt], None, settings, self.max_positions)
        return self._stream(plan, plan.rows(reader))

    def _stream(self, plan: Plan, rows: list[Row]) -> Iterator[str]:
        with self._ready():
            steps = self._steps(plan, rows)
        while rows[0].finish is None:
            with self._ready():  # never across a yield: the caller's grad mode is not ours to hold
                next(steps)
            if rows[0].fresh:
                yield rows[0].fresh

    def _steps(self, plan: Plan, rows: list[Row]) -> Iterator[int]:
        """Generates all rows; after each token says how many it finished."""
        push = partial(push_all, eos=self._eos)
        shape = self._check().shape
        if shape is not None:
            return ContinuousBatch(bind(self._model), shape, plan, **self._batch).run(rows, push)
        self._known_traits = self._known_traits or traits_of(self._model, self._pad)
        return PaddedBatches(self._model, self._known_traits, plan, pad=self._pad, **self._batch).run(
            rows, push
        )

    def _check(self) -> Checked:
        """Whether the model can be taken apart, found anew when its modules have changed."""
        if not self._take_apart:
            return Checked(None, "it was asked for")
        kinds = tuple(type(module) for module in self._model.modules())
        if self._checked is None or self._checked[0] != kinds:
            self._checked = kinds, check(self._model)
        return self._checked[1]

    def _reader(self, settings: SamplingSettings) -> Detokenizer:
        if self._tokenizer is None:
            what = f"stop is {settings.stop!r}, but" if settings.stop else "text is to be streamed, but"
            raise ConfigError(f"{what} the generator has no tokenizer to read text with; give it one")
        return self._tokenizer

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The model in evaluation mode, without gradients, with plain attention; afterwards as before."""
        training = [module for module in self._model.modules() if module.training]
        # no_grad rather than inference_mode: buffers that a forward keeps must still work in training.
        with torch.no_grad(), self._attention(self._model):
            self._model.eval()
            try:
                yield
            finally:
                for module in training:
                    module.training = True
