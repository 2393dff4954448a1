"""Answers that the model writes itself before a step, in the place of those of its rows (`Method.sampling`).

What a step learns from is a function of seed, step, rows and weights. So a resumed run draws what the uninterrupted one
drew, and each rank answers the prompts of its own rows: nothing is sent, and nothing must be saved.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.config.tree import Config
from luthier.data.batch import Batch, Example, Segment
from luthier.data.loader import Steps
from luthier.data.pack import pack
from luthier.data.tokens import last_learned
from luthier.methods.base import Method, Sampling
from luthier.models.inference import stop_ids
from luthier.models.load import load_tokenizer
from luthier.models.policy import Policy
from luthier.rollout.native import NativeGenerator
from luthier.rollout.sampling import SamplingSettings

OF_DATA = ("row", "bytes")
"""Columns that say something of the row's own answer, or that every batch has anew."""


@dataclass(frozen=True)
class Prompt:
    """All that stands before the last thing that a row teaches."""

    ids: NDArray[np.int32]
    row: int
    columns: dict[str, float]


class OwnAnswers:
    """Makes a step's micro-batches of the model's own answers to their rows.

    Args:
        generator: writes the answers, with the weights as they are at that moment.
        sampling: how, and in which share of the steps.
        steps: makes micro-batches of rows, none longer than its `micro_tokens`.
        seed: with the number of the step it fixes all draws.
    """

    def __init__(self, generator: NativeGenerator, sampling: Sampling, steps: Steps, seed: int):
        assert steps.shape is None, "own answers are of any length"
        self.generator, self.sampling, self.steps, self.seed = generator, sampling, steps, seed

    def __call__(self, step: int, micro_batches: list[Batch]) -> list[Batch]:
        """The micro-batches of the step that follows `step` others; those given, in a step that keeps them."""
        if not self.due(step):
            return micro_batches
        prompts = [prompt for batch in micro_batches for prompt in prompts_of(batch)]
        rows = self._answered(prompts, step)
        packs = pack(np.array([len(row) for row in rows], np.int64), self.steps.micro_tokens)
        return [self.steps.batch([rows[int(i)] for i in numbers]) for numbers in packs]

    def due(self, step: int) -> bool:
        """Whether the step learns from own answers; the same on every rank."""
        return self._draw(step, "due") < self.sampling.fraction * 2**63

    def _answered(self, prompts: Sequence[Prompt], step: int) -> list[Example]:
        settings = SamplingSettings(
            max_new_tokens=self.sampling.max_new_tokens,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            num_samples=self.sampling.num_samples,
            seed=self._draw(step, "answers"),
        )
        most = min(self.steps.micro_tokens, self.generator.max_positions or self.steps.micro_tokens)
        room = [(most - len(prompt.ids)) // settings.num_samples for prompt in prompts]
        prompts = [prompt for prompt, tokens in zip(prompts, room, strict=True) if tokens > 0]
        found = self.generator.generate(
            [prompt.ids.tolist() for prompt in prompts],
            settings,
            numbers=[prompt.row for prompt in prompts],
            limits=[tokens for tokens in room if tokens > 0],
        )
        pairs = zip(prompts, found, strict=True)
        return [_example(prompt, [one.ids for one in answers]) for prompt, answers in pairs]

    def _draw(self, step: int, purpose: str) -> int:
        """A number below 2**63 that only this seed, step and purpose have."""
        digest = hashlib.blake2b(f"{self.seed}/{step}/{purpose}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1


def build_own_answers(
    config: Config, method: Method, policy: Policy, steps: Steps
) -> tuple[OwnAnswers | None, list[str]]:
    """What the method asks for, and notes on it; None where it learns the answers of its rows."""
    sampling = method.sampling
    if sampling is None:
        return None, []
    name, revision, new = config.model.name, config.model.revision, config.model.new_tokens
    tokenizer = load_tokenizer(name, revision=revision, offline=config.offline, new_tokens=new)
    generator = NativeGenerator(policy.model, eos_token_ids=stop_ids(policy.model, tokenizer))
    often = "each step" if sampling.fraction >= 1 else f"{sampling.fraction:.0%} of the steps"
    note = (
        f"in {often} the model answers the prompts itself first, in at most {sampling.max_new_tokens} tokens"
    )
    return OwnAnswers(generator, sampling, steps, config.seed), [f"{note}. {generator.way}"]


def prompts_of(batch: Batch) -> Iterator[Prompt]:
    """The prompt of each row of a batch, on the CPU; rows that teach nothing have none."""
    starts = batch.starts_S1.tolist()
    seen: set[int] = set()
    for number, path in enumerate(batch.paths()):
        row = int(batch.columns["row"][number])
        places = batch.source_N[(batch.sequence_N == number) & (batch.weight_N != 0)]
        if row < 0 or row in seen or not len(places):
            continue
        seen.add(row)
        index_P = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in path])
        learned_P = torch.zeros(len(index_P), dtype=torch.bool)
        learned_P[torch.searchsorted(index_P, places) + 1] = True
        ids = batch.tokens_T[index_P][: last_learned(learned_P.numpy()).start]
        facts = {n: float(column[number]) for n, column in batch.columns.items() if n not in OF_DATA}
        yield Prompt(ids.numpy().astype(np.int32), row, facts)


def _example(prompt: Prompt, answers: Sequence[Sequence[int]]) -> Example:
    """A row of a prompt and the answers to it, all of whose tokens are learned alike."""
    segments = [Segment(prompt.ids, np.zeros(len(prompt.ids), np.float32))]
    segments += [Segment(np.array(ids, np.int32), np.ones(len(ids), np.float32), parent=0) for ids in answers]
    return Example(tuple(segments), row=prompt.row, columns=dict(prompt.columns))
