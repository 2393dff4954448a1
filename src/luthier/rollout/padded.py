"""Generation through transformers' forward and key-value cache: for every model, in batches from start to end.

Shape suffixes: B rows, P prompts, T tokens, N tokens to generate, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.rollout.decoder import Decoder, Traits
from luthier.rollout.rows import Plan, Push, Row
from luthier.rollout.sampling import choose, log_probability, row_uniforms

MIN_PREFIX = 16
"""Shortest common prefix that is worth a forward of its own."""
COMPACT_SHARE = 7 / 8
"""Rows that are done leave the batch once no more than this share is still going."""


class PaddedBatches:
    """Generates the answers of one plan.

    Args:
        batch_rows, batch_tokens: most answers in a batch, and most tokens if all took their full length.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        traits: Traits,
        plan: Plan,
        *,
        pad: int,
        batch_rows: int,
        batch_tokens: int,
    ):
        self._model, self._traits, self._plan, self._pad = model, traits, plan, pad
        self._batch_rows, self._batch_tokens = batch_rows, batch_tokens
        shared = traits.shares_prefix and plan.common >= MIN_PREFIX
        self._prefix = plan.common if shared else 0

    def run(self, rows: list[Row], push: Push) -> Iterator[int]:
        """After each token of a batch says how many rows it finished."""
        shared = self._read_prefix()
        for batch in self._batches(rows):
            yield from self._decode(batch, push, shared)

    def _read_prefix(self) -> Decoder | None:
        if not self._prefix:
            return None
        decoder = Decoder(self._model, self._traits, 1)
        first = self._plan.prompts[0][: self._prefix]
        decoder.read(torch.tensor([first], device=self._model.device))
        return decoder

    def _batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """The rows, in order, in portions that fit; of one length where the cache cannot take padding."""
        prompts, batch = self._plan.prompts, []
        for row in rows:
            first = batch[0] if batch else row
            fits = len(batch) < self._batch_rows and self._batch_tokens >= (len(batch) + 1) * (
                len(prompts[first.prompt]) + first.limit
            )
            alike = self._traits.pads or len(prompts[row.prompt]) == len(prompts[first.prompt])
            if batch and not (fits and alike):
                yield batch
                batch = []
            batch.append(row)
        yield batch

    def _decode(self, rows: list[Row], push: Push, shared: Decoder | None) -> Iterator[int]:
        """Generates one batch to its end."""
        decoder, logits_BV = self._start(rows, shared)
        plan, settings, device = self._plan, self._plan.settings, logits_BV.device
        draws = [row_uniforms(settings, plan.numbers[row.prompt], row.sample) for row in rows]
        uniform_BN = torch.stack(draws).to(device)
        for step in range(settings.max_new_tokens):
            token_B = choose(logits_BV, uniform_BN[:, step], settings)
            logp_B = log_probability(logits_BV, token_B)
            # One transfer, the only point of a step where the program waits for the device.
            tokens, logps = torch.stack([token_B.double(), logp_B.double()]).tolist()
            yield push(rows, tokens, logps)
            keep = [place for place, row in enumerate(rows) if row.finish is None]
            if not keep:
                return
            if len(keep) <= COMPACT_SHARE * len(rows):
                index = torch.tensor(keep, device=device)
                decoder.select(index)
                token_B, uniform_BN, rows = token_B[index], uniform_BN[index], [rows[place] for place in keep]
            logits_BV = decoder.read(token_B[:, None])

    def _start(self, rows: list[Row], shared: Decoder | None) -> tuple[Decoder, Tensor]:
        """Reads each prompt of the rows once; the decoder's rows are then these, with the logits that follow."""
        device = self._model.device
        place = {prompt: n for n, prompt in enumerate(dict.fromkeys(row.prompt for row in rows))}
        rests = [self._plan.prompts[prompt][self._prefix :] for prompt in place]
        longest = max(map(len, rests))
        tokens_PT = torch.tensor(
            [[self._pad] * (longest - len(rest)) + rest for rest in rests], device=device
        )
        pad_P = torch.tensor([longest - len(rest) for rest in rests], device=device)
        decoder = shared.fork(len(rests)) if shared else Decoder(self._model, self._traits, len(rests))
        padded = any(len(rest) < longest for rest in rests)
        logits_PV = decoder.read(tokens_PT, pad_P if padded else None)
        if len(rows) == len(rests):
            return decoder, logits_PV
        index = torch.tensor([place[row.prompt] for row in rows], device=device)
        decoder.select(index)
        return decoder, logits_PV[index]
