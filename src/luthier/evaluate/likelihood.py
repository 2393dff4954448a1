"""How well a model predicts held-out rows, example by example, kept as it is found.

loss = Σ weight · -ln p / Σ weight over all rows, perplexity = exp(loss), bits per byte = Σ -ln p / (ln 2 · bytes)
where all rows are plain text (`loss.py` says more). An interval draws whole rows, so that the tokens of a row stay
together.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from luthier.data.batch import collate
from luthier.data.loader import Dataset
from luthier.data.pack import pack
from luthier.evaluate.intervals import Floats, Sums, ratio
from luthier.evaluate.journal import Journal, Predicted
from luthier.models.policy import Policy


@torch.no_grad()
def predict(
    policy: Policy,
    rows: Dataset,
    places: Sequence[int],
    journal: Journal,
    *,
    micro_tokens: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Finds how likely the learned tokens of these examples are. Dropout is off."""
    was_training = policy.training
    policy.eval()
    lengths, done = np.asarray(rows.lengths)[np.asarray(places, dtype=np.int64)], 0
    for pack_of in pack(lengths, micro_tokens):
        chosen = [places[int(i)] for i in pack_of]
        batch = collate([rows.example(place) for place in chosen]).to(device)
        assert batch.num_sequences == len(chosen), "an example to predict is one sequence"
        nll_N = -policy(batch).double()
        zero_Q = torch.zeros(len(chosen), dtype=torch.float64, device=device)
        learned_N, weight_N = (batch.weight_N != 0).double(), batch.weight_N.double()
        sums = [
            zero_Q.index_add(0, batch.sequence_N, each_N).tolist()
            for each_N in (weight_N * nll_N, weight_N, learned_N * nll_N, learned_N)
        ]
        bytes_Q = batch.columns.get("bytes")
        sizes = [math.nan] * len(chosen) if bytes_Q is None else bytes_Q.tolist()
        numbers = batch.columns["row"].tolist()
        for place, row, size, loss, weight, nll, tokens in zip(chosen, numbers, sizes, *sums, strict=True):
            known = None if math.isnan(size) else size
            journal.predict(place, Predicted(int(row), loss, weight, nll, int(tokens), known))
        done += len(chosen)
        if progress:
            progress(done, len(places))
    policy.train(was_training)


def loss_of(found: Sequence[Predicted]) -> Sums:
    """The mean loss of a token, in nats."""
    return Sums(np.array([[one.loss, one.weight] for one in found], dtype=np.float64).reshape(-1, 2), ratio)


def bits_per_byte_of(found: Sequence[Predicted]) -> Sums | None:
    """Bits per byte; None unless all rows are plain text."""
    if not found or any(not one.bytes for one in found):
        return None

    def value(sums: Floats) -> Floats:
        return ratio(sums) / math.log(2)

    return Sums(np.array([[one.nll, one.bytes or 0.0] for one in found], dtype=np.float64), value)
