"""Generation from a model's parts: rows of any lengths side by side, and as one is done the next takes its place.

A prompt is read once for all its answers, and what all prompts begin with once for all prompts. Rows do not wait
for each other, so a long answer does not hold up the short ones behind it.

Shape suffixes: B rows, N tokens to generate, V vocabulary.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.kernels.logprob import LogitShape
from luthier.models.decoding.bound import BoundModel
from luthier.models.decoding.cache import BLOCK, Stored, blocks_for
from luthier.models.decoding.decoder import BlockDecoder
from luthier.rollout.rows import Plan, Push, Row
from luthier.rollout.sampling import choose, log_probability, row_uniforms

REFILL_SHARE = 1 / 8
"""Rows that are done are replaced once this share of the batch is free: reading a few prompts at once is cheaper."""


@dataclass
class _Going:
    """A row in the batch."""

    row: Row
    stored: Stored
    draws: list[float]


@dataclass
class _Prompt:
    """A prompt that was read, as long as some of its answers have not begun."""

    stored: Stored
    logits_V: Tensor
    waiting: int


class ContinuousBatch:
    """Generates the answers of one plan.

    Args:
        bound, shape: the model, taken apart.
        batch_rows, batch_tokens: most answers at a time, and most tokens in the cache if all took their full
            length (more only where a single answer needs it).
    """

    def __init__(
        self, bound: BoundModel, shape: LogitShape, plan: Plan, *, batch_rows: int, batch_tokens: int
    ):
        self._plan, self._batch_rows = plan, batch_rows
        self._prefix = plan.common // BLOCK * BLOCK
        self._decoder = BlockDecoder(bound, shape, _room(plan, self._prefix, batch_rows, batch_tokens))
        self._device = bound.layers[0].attention.output.weight_NK.device
        self._start = Stored()
        self._read: dict[int, _Prompt] = {}

    def run(self, rows: Sequence[Row], push: Push) -> Iterator[int]:
        """After each token says how many rows it finished."""
        self._read_prefix()
        waiting, going = deque(rows), []
        while waiting or going:
            logits_BV = None
            if waiting and (not going or self._batch_rows - len(going) >= REFILL_SHARE * self._batch_rows):
                fresh, logits_BV = self._admit(waiting, len(going))
                if fresh:
                    yield self._draw(fresh, logits_BV, push)
                    going = self._keep(going + fresh)
            if going:
                token_B = torch.tensor([one.row.ids[-1] for one in going], device=self._device)
                logits_BV = self._decoder.step(token_B, [one.stored for one in going])
                yield self._draw(going, logits_BV, push)
                going = self._keep(going)

    def _draw(self, going: list[_Going], logits_BV: Tensor, push: Push) -> int:
        settings, logits_BV = self._plan.settings, logits_BV.float()
        draws = [one.draws[len(one.row.ids)] for one in going] if settings.temperature else None
        uniform_B = None if draws is None else torch.tensor(draws, dtype=torch.float64, device=self._device)
        token_B = choose(logits_BV, uniform_B, settings)
        logp_B = log_probability(logits_BV, token_B)
        # One transfer, the only point of a step where the program waits for the device.
        tokens, logps = torch.stack([token_B.double(), logp_B.double()]).tolist()
        return push([one.row for one in going], tokens, logps)

    def _keep(self, going: list[_Going]) -> list[_Going]:
        """Those that go on; the others' blocks are free."""
        for one in going:
            if one.row.finish is not None:
                self._decoder.cache.release(one.stored)
        return [one for one in going if one.row.finish is None]

    def _read_prefix(self) -> None:
        if self._prefix:
            self._decoder.cache.grow(self._start, self._prefix)
            self._decoder.read([self._start], [self._plan.prompts[0][: self._prefix]])

    def _admit(self, waiting: deque[Row], num_going: int) -> tuple[list[_Going], Tensor]:
        """Takes rows in as far as there is room, with the logits that each begins with."""
        taken: list[Row] = []
        unread: dict[int, Stored] = {}
        free = self._decoder.cache.num_free
        while waiting and num_going + len(taken) < self._batch_rows:
            row = waiting[0]
            free -= self._cost(row, row.prompt in unread)
            if free < 0:
                break
            if row.prompt not in self._read:
                unread.setdefault(row.prompt, Stored())
            taken.append(waiting.popleft())
        self._read_prompts(unread)
        starts = [self._begin(row) for row in taken]
        logits = torch.stack([logits_V for _, logits_V in starts]) if starts else torch.empty(0)
        return [going for going, _ in starts], logits

    def _cost(self, row: Row, reading: bool) -> int:
        """Blocks that taking this row in can need: its own beyond the prompt's whole blocks, and the prompt's."""
        length = len(self._plan.prompts[row.prompt])
        own = blocks_for(length + row.limit) - length // BLOCK
        read = reading or row.prompt in self._read
        return own if read else own + blocks_for(length) - self._prefix // BLOCK

    def _read_prompts(self, unread: dict[int, Stored]) -> None:
        cache, prompts = self._decoder.cache, self._plan.prompts
        for prompt in unread:
            if self._prefix:
                unread[prompt] = cache.fork(self._start, 1)[0]
            cache.grow(unread[prompt], len(prompts[prompt]))
        if not unread:
            return
        rests = [prompts[prompt][self._prefix :] for prompt in unread]
        logits_PV = self._decoder.read(list(unread.values()), rests)
        for (prompt, stored), logits_V in zip(unread.items(), logits_PV, strict=True):
            self._read[prompt] = _Prompt(stored, logits_V, self._plan.settings.num_samples)

    def _begin(self, row: Row) -> tuple[_Going, Tensor]:
        """The row behind its prompt. The last one takes the prompt's blocks over."""
        prompt, cache = self._read[row.prompt], self._decoder.cache
        prompt.waiting -= 1
        stored = cache.fork(prompt.stored, 1)[0] if prompt.waiting else self._read.pop(row.prompt).stored
        cache.grow(stored, stored.length + row.limit)
        number = self._plan.numbers[row.prompt]
        greedy = self._plan.settings.temperature == 0
        draws = [] if greedy else row_uniforms(self._plan.settings, number, row.sample).tolist()
        return _Going(row, stored, draws), prompt.logits_V


def _room(plan: Plan, prefix: int, batch_rows: int, batch_tokens: int) -> int:
    """Blocks that the cache needs: for all answers, or as many as `batch_tokens` allow, but one at least."""
    own = [blocks_for(len(p) + limit) for p, limit in zip(plan.prompts, plan.limits, strict=True)]
    read = [blocks_for(len(p)) for p in plan.prompts]
    all_at_once = sum(own) * plan.settings.num_samples + sum(read)
    largest = sorted(own)[::-1][:batch_rows]
    at_a_time = batch_rows * largest[0] + sum(read)
    one = max(a + b for a, b in zip(own, read, strict=True))
    return prefix // BLOCK + max(one, min(all_at_once, at_a_time, blocks_for(batch_tokens)))
