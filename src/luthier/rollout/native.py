"""Generation with the model itself: HF's forward and key-value cache, in batches, on any device.

The log-probabilities that come with an answer are the model's own, those that a training forward over prompt
and answer gives. Rows do not see each other: an answer is the same alone and in any batch, up to rounding.

Shape suffixes: B rows, P prompts, T tokens, N tokens to generate, V vocabulary.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.errors import ConfigError, DataError, RunError
from luthier.models.compat import plain_attention
from luthier.rollout.decoder import Decoder, Traits, max_positions, traits_of
from luthier.rollout.sampling import SamplingSettings, choose, log_probability, row_uniforms
from luthier.rollout.text import Detokenizer, TextReader, decode

Finish = Literal["eos", "stop", "length"]
Progress = Callable[[int, int], None]

MIN_PREFIX = 16
"""Shortest common prefix that is worth a forward of its own."""
COMPACT_SHARE = 7 / 8
"""Rows that are done leave the batch once no more than this share is still going."""


@dataclass(frozen=True)
class Completion:
    """One answer."""

    ids: list[int]
    """The tokens generated, with the end-of-sequence token or the stop string's tokens if they ended it."""
    text: str
    """Their text without special tokens, cut before the stop string; empty without a tokenizer."""
    logp: list[float]
    """What the model gives each token: ln p at temperature 1 over the whole vocabulary."""
    finish: Finish
    """What ended it: a token, a stop string, or a limit (`max_new_tokens`, the model's context)."""


@dataclass
class _Row:
    """An answer under way."""

    prompt: int
    sample: int
    limit: int
    reader: TextReader | None
    ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    finish: Finish | None = None
    fresh: str = ""

    def push(self, token: int, logp: float, eos: Collection[int]) -> None:
        self.ids.append(token)
        self.logp.append(logp)
        self.fresh = ""
        if token in eos:
            self.finish = "eos"
        elif self.reader:
            self.fresh = self.reader.push(token)
            if self.reader.stopped:
                self.finish = "stop"
        if self.finish is None and len(self.ids) >= self.limit:
            self.finish = "length"
        if self.finish and self.reader:
            self.fresh += self.reader.close()

    def completion(self, tokenizer: Detokenizer | None) -> Completion:
        assert self.finish is not None
        if self.reader:
            text = self.reader.text
        else:
            text = decode(tokenizer, self.ids[: -1 if self.finish == "eos" else None]) if tokenizer else ""
        return Completion(self.ids, text, self.logp, self.finish)


@dataclass(frozen=True)
class _Plan:
    """What one call generates."""

    prompts: list[list[int]]
    numbers: list[int]
    limits: list[int]
    settings: SamplingSettings
    prefix: int
    """How many tokens all prompts begin with in common and are read once."""

    def rows(self, tokenizer: Detokenizer | None) -> list[_Row]:
        """All answers, longest prompt first; with a tokenizer, their text is read as it comes."""
        order = sorted(range(len(self.prompts)), key=lambda prompt: -len(self.prompts[prompt]))
        stop = self.settings.stop
        return [
            _Row(prompt, sample, self.limits[prompt], TextReader(tokenizer, stop) if tokenizer else None)
            for prompt in order
            for sample in range(self.settings.num_samples)
        ]


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
    ):
        """`attention` makes the context in which the model uses transformers' own attention. A batch holds at
        most `batch_rows` answers and `batch_tokens` tokens, as if all answers took their full length."""
        self._model = model
        self._eos = frozenset(eos_token_ids)
        self._pad = pad_token_id
        self._tokenizer = tokenizer
        self._attention = attention
        self._batch_tokens = batch_tokens
        self._batch_rows = batch_rows
        self._known_traits: Traits | None = None

    @property
    def max_positions(self) -> int | None:
        """Most tokens of prompt and answer together; None: the model has no limit."""
        return max_positions(self._model)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        *,
        numbers: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """Answers to each prompt, in order: [prompt][sample].

        `numbers` are the prompts' numbers in the random draws, their places in the list if absent: with them
        a prompt gets the same answer whatever list it is in. `progress` is told (answers done, all answers).

        Raises:
            DataError: a prompt is empty or fills the model's context.
            ConfigError: stop strings without a tokenizer to find them with.
            RunError: the model's logits are not finite.
        """
        if not prompts:
            return []
        reader = self._reader(settings) if settings.stop else None
        with self._ready() as traits:
            plan = self._plan(prompts, numbers, settings, traits)
            rows = plan.rows(reader)
            shared = self._read_prefix(plan, traits)
            done = 0
            for batch in self._batches(rows, plan, traits):
                for finished in self._decode(batch, plan, traits, shared):
                    done += finished
                    if finished and progress:
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
        with self._ready() as traits:
            plan = self._plan([prompt], None, settings, traits)
        return self._stream(plan, traits, plan.rows(reader))

    def _stream(self, plan: _Plan, traits: Traits, rows: list[_Row]) -> Iterator[str]:
        steps = self._decode(rows, plan, traits, None)
        while rows[0].finish is None:
            with self._ready():  # never across a yield: the caller's grad mode is not ours to hold
                next(steps)
            if rows[0].fresh:
                yield rows[0].fresh

    def _reader(self, settings: SamplingSettings) -> Detokenizer:
        if self._tokenizer is None:
            what = f"stop is {settings.stop!r}, but" if settings.stop else "text is to be streamed, but"
            raise ConfigError(f"{what} the generator has no tokenizer to read text with; give it one")
        return self._tokenizer

    @contextmanager
    def _ready(self) -> Iterator[Traits]:
        """The model in evaluation mode, without gradients, with plain attention; afterwards as before."""
        training = [module for module in self._model.modules() if module.training]
        # no_grad rather than inference_mode: buffers that a forward keeps must still work in training.
        with torch.no_grad(), self._attention(self._model):
            self._model.eval()
            try:
                self._known_traits = self._known_traits or traits_of(self._model, self._pad)
                yield self._known_traits
            finally:
                for module in training:
                    module.training = True

    def _plan(
        self,
        prompts: Sequence[Sequence[int]],
        numbers: Sequence[int] | None,
        settings: SamplingSettings,
        traits: Traits,
    ) -> _Plan:
        assert numbers is None or len(numbers) == len(prompts)
        limits = [
            _limit(place, len(prompt), settings, self.max_positions) for place, prompt in enumerate(prompts)
        ]
        prefix = _common_prefix(prompts) if traits.shares_prefix and len(prompts) > 1 else 0
        return _Plan(
            prompts=[list(prompt) for prompt in prompts],
            numbers=list(range(len(prompts)) if numbers is None else numbers),
            limits=limits,
            settings=settings,
            prefix=prefix if prefix >= MIN_PREFIX else 0,
        )

    def _read_prefix(self, plan: _Plan, traits: Traits) -> Decoder | None:
        if not plan.prefix:
            return None
        decoder = Decoder(self._model, traits, 1)
        decoder.read(torch.tensor([plan.prompts[0][: plan.prefix]], device=self._model.device))
        return decoder

    def _batches(self, rows: list[_Row], plan: _Plan, traits: Traits) -> Iterator[list[_Row]]:
        """The rows, in order, in portions that fit; of one length where the cache cannot take padding."""
        batch: list[_Row] = []
        for row in rows:
            first = batch[0] if batch else row
            fits = len(batch) < self._batch_rows and self._batch_tokens >= (len(batch) + 1) * (
                len(plan.prompts[first.prompt]) + first.limit
            )
            alike = traits.pads or len(plan.prompts[row.prompt]) == len(plan.prompts[first.prompt])
            if batch and not (fits and alike):
                yield batch
                batch = []
            batch.append(row)
        yield batch

    def _decode(self, rows: list[_Row], plan: _Plan, traits: Traits, shared: Decoder | None) -> Iterator[int]:
        """Generates one batch to its end; after each step says how many rows it finished."""
        decoder, logits_BV = self._start(rows, plan, traits, shared)
        settings, device = plan.settings, logits_BV.device
        draws = [row_uniforms(settings, plan.numbers[row.prompt], row.sample) for row in rows]
        uniform_BN = torch.stack(draws).to(device)
        for step in range(settings.max_new_tokens):
            token_B = choose(logits_BV, uniform_BN[:, step], settings)
            logp_B = log_probability(logits_BV, token_B)
            # One transfer, the only point of a step where the program waits for the device.
            tokens, logps = torch.stack([token_B.double(), logp_B.double()]).tolist()
            yield self._push(rows, tokens, logps)
            keep = [place for place, row in enumerate(rows) if row.finish is None]
            if not keep:
                return
            if len(keep) <= COMPACT_SHARE * len(rows):
                index = torch.tensor(keep, device=device)
                decoder.select(index)
                token_B, uniform_BN, rows = token_B[index], uniform_BN[index], [rows[place] for place in keep]
            logits_BV = decoder.read(token_B[:, None])

    def _start(
        self, rows: list[_Row], plan: _Plan, traits: Traits, shared: Decoder | None
    ) -> tuple[Decoder, Tensor]:
        """Reads each prompt of the batch once and lays its samples side by side. Logits: [B, V]."""
        device = self._model.device
        place = {prompt: number for number, prompt in enumerate(dict.fromkeys(row.prompt for row in rows))}
        rests = [plan.prompts[prompt][plan.prefix :] for prompt in place]
        longest = max(map(len, rests))
        tokens_PT = torch.tensor(
            [[self._pad] * (longest - len(rest)) + rest for rest in rests], device=device
        )
        pad_P = torch.tensor([longest - len(rest) for rest in rests], device=device)
        decoder = shared.fork(len(rests)) if shared else Decoder(self._model, traits, len(rests))
        padded = any(len(rest) < longest for rest in rests)
        logits_PV = decoder.read(tokens_PT, pad_P if padded else None)
        if len(rows) == len(rests):
            return decoder, logits_PV
        index = torch.tensor([place[row.prompt] for row in rows], device=device)
        decoder.select(index)
        return decoder, logits_PV[index]

    def _push(self, rows: list[_Row], tokens: list[float], logps: list[float]) -> int:
        """Gives each row its token; returns how many that finished."""
        finished = 0
        for row, token, logp in zip(rows, tokens, logps, strict=True):
            if row.finish is not None:
                continue
            if not math.isfinite(logp):
                raise RunError(
                    f"the model's logits after {len(row.ids)} tokens of the answer to prompt {row.prompt} "
                    "are not finite, so no token can be drawn. Its weights or its adapter are broken, or its "
                    "dtype overflows; try model.dtype: float32."
                )
            row.push(int(token), logp, self._eos)
            finished += row.finish is not None
        return finished


def _limit(place: int, length: int, settings: SamplingSettings, most: int | None) -> int:
    """How many tokens the answer to a prompt may have."""
    if length == 0:
        raise DataError(f"prompt {place} is empty; a model needs at least one token to go on from")
    if most is None:
        return settings.max_new_tokens
    if length >= most:
        raise DataError(
            f"prompt {place} has {length} tokens, but the model's context holds {most} and an answer needs "
            "at least one of them; shorten the prompt"
        )
    return min(settings.max_new_tokens, most - length)


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with in common; each keeps at least one of its own."""
    # Whatever the first and the last in order share, all between them share too.
    ordered = sorted(map(list, prompts))
    first, last = ordered[0], ordered[-1]
    longest = min(map(len, prompts)) - 1
    return next((n for n in range(longest) if first[n] != last[n]), longest)
