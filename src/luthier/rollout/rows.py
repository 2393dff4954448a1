"""Answers under way and finished, and what one call is to generate."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from luthier.errors import DataError, RunError
from luthier.rollout.sampling import SamplingSettings
from luthier.rollout.text import Detokenizer, TextReader, decode

Finish = Literal["eos", "stop", "length"]
Push = Callable[[Sequence["Row"], Sequence[float], Sequence[float]], int]
"""Gives each row its token and the token's log-probability; returns how many that finished."""


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
class Row:
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
        """Takes one more token."""
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
        """The finished answer."""
        assert self.finish is not None
        if self.reader:
            text = self.reader.text
        else:
            text = decode(tokenizer, self.ids[: -1 if self.finish == "eos" else None]) if tokenizer else ""
        return Completion(self.ids, text, self.logp, self.finish)


@dataclass(frozen=True)
class Plan:
    """What one call generates."""

    prompts: list[list[int]]
    numbers: list[int]
    """The prompts' numbers in the random draws."""
    limits: list[int]
    """How many tokens the answers to each may have."""
    settings: SamplingSettings
    common: int
    """How many tokens all prompts begin with in common."""

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        numbers: Sequence[int] | None,
        settings: SamplingSettings,
        max_positions: int | None,
        most: Sequence[int] | None = None,
    ) -> "Plan":
        """The plan for these prompts; `most` bounds the answers to each. Raises DataError where there can be none."""
        assert numbers is None or len(numbers) == len(prompts)
        limits = [_limit(place, len(prompt), settings, max_positions) for place, prompt in enumerate(prompts)]
        if most is not None:
            limits = list(map(min, limits, most))
        return cls(
            prompts=[list(prompt) for prompt in prompts],
            numbers=list(range(len(prompts)) if numbers is None else numbers),
            limits=limits,
            settings=settings,
            common=_common_prefix(prompts) if len(prompts) > 1 else 0,
        )

    def rows(self, tokenizer: Detokenizer | None) -> list[Row]:
        """All answers, longest prompt first; with a tokenizer, their text is read as it comes."""
        order = sorted(range(len(self.prompts)), key=lambda prompt: -len(self.prompts[prompt]))
        stop = self.settings.stop
        return [
            Row(prompt, sample, self.limits[prompt], TextReader(tokenizer, stop) if tokenizer else None)
            for prompt in order
            for sample in range(self.settings.num_samples)
        ]


def push_all(
    rows: Sequence[Row], tokens: Sequence[float], logps: Sequence[float], eos: Collection[int]
) -> int:
    """Gives each row that is not done its token; returns how many that finished.

    Raises:
        RunError: a log-probability is not finite.
    """
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
        row.push(int(token), logp, eos)
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
