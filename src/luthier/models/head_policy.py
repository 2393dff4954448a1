"""A model with a head of another kind as a function from a batch to what the head says.

The batch goes through the layers as it does for the next token (policy.py); only what is read is another thing.

Shape suffixes: T tokens, S segments, N predictions, Q sequences, D hidden size.
"""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.data.batch import Batch
from luthier.kernels.logprob import LogitShape
from luthier.models.policy import Layout, Policy
from luthier.models.value_head import Head, head_values


class HeadPolicy(Policy):
    """What a head says of a batch.

    Args:
        model: one of transformers with such a head.
        layout: how documents go through it.
        shape: of no meaning here.
        kind: the head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layout: Layout = "packed",
        shape: LogitShape | None = None,
        *,
        kind: Head,
    ):
        super().__init__(model, layout, shape)
        self.kind = kind

    def forward(self, batch: Batch) -> Tensor:
        """[Q, labels] for a score, [N, labels] for steps, [Q, D] for an embedding; in fp32."""
        if self.kind.kind == "steps":
            return head_values(self.model, self._hidden(batch))
        if self.kind.kind == "score":
            return head_values(self.model, self._hidden(at_last(batch)))
        if self.kind.pooling == "last":
            return _wide(self._hidden(at_last(batch)))
        everywhere = at_every(batch)
        hidden_ND = _wide(self._hidden(everywhere))
        total_QD = hidden_ND.new_zeros(batch.num_sequences, hidden_ND.shape[-1])
        total_QD = total_QD.index_add(0, everywhere.sequence_N, hidden_ND)
        length_Q = torch.bincount(everywhere.sequence_N, minlength=batch.num_sequences)
        return total_QD / length_Q.clamp(min=1)[:, None]

    def sketch(self, batch: Batch) -> Tensor:
        """Hidden states in one random direction, [N]: weights of a head may be zero."""
        hidden_ND = _wide(self._hidden(batch))
        generator = torch.Generator().manual_seed(0)
        return hidden_ND @ torch.randn(hidden_ND.shape[-1], generator=generator).to(hidden_ND)


def at_last(batch: Batch) -> Batch:
    """The batch with one prediction for each sequence, made from its last token."""
    ends = batch.starts_S1[1:] - 1
    inner = torch.zeros(len(ends), dtype=torch.bool)
    inner[batch.parent_S[batch.parent_S >= 0]] = True
    return _asking(batch, ends[~inner], torch.arange(batch.num_sequences))


def at_every(batch: Batch) -> Batch:
    """The batch with a prediction made from every token of every sequence, root to leaf."""
    starts, paths = batch.starts_S1.tolist(), batch.paths()
    pieces = [torch.arange(starts[s], starts[s + 1]) for path in paths for s in path]
    sequences = [torch.full((starts[s + 1] - starts[s],), q) for q, path in enumerate(paths) for s in path]
    return _asking(batch, torch.cat(pieces), torch.cat(sequences))


def _asking(batch: Batch, source_N: Tensor, sequence_N: Tensor) -> Batch:
    device = batch.tokens_T.device
    return replace(
        batch,
        source_N=source_N.to(device),
        target_N=torch.zeros_like(source_N, device=device),
        weight_N=torch.ones(len(source_N), device=device),
        sequence_N=sequence_N.to(device),
    )


def _wide(hidden: Tensor) -> Tensor:
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))
