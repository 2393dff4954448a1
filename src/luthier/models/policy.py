"""A model as a function from a batch to the log-probabilities of its predictions.

Three layouts, chosen by what the model can do (tripwire.py), with the same numbers:

- packed: the whole forest in one stream, attention over segments, chunked head. The fast path.
- rows: one document at a time, chunked head; for models whose layers mix neighbouring tokens (recurrent ones).
- plain: one document at a time through the model's own logits; for models with a head of their own making.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.data.batch import Batch
from luthier.kernels import teacher as teachers
from luthier.kernels.attention import Forest
from luthier.kernels.divergence import Measure
from luthier.kernels.logprob import LogitShape
from luthier.kernels.sampled_targets import gumbel_argmax, sampled_targets
from luthier.kernels.teacher import Teacher, TeacherHead, TeacherLogits
from luthier.kernels.token_statistics import Statistic, of_logits
from luthier.models import compat
from luthier.models.heads import OutputHead
from luthier.models.noise import EmbeddingNoise
from luthier.models.peft_adapters.held import peft_of
from luthier.models.routers import Routers

Layout = Literal["packed", "rows", "plain"]


class Policy(nn.Module):
    """Scores the predictions of a batch with a causal language model.

    Args:
        model: any causal LM of transformers. Its attention is set to Luthier's for the packed layout.
        layout: how documents go through it.
        shape: what the model does to its logits.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout = "packed", shape: LogitShape | None = None):
        super().__init__()
        self.model, self.layout = model, layout
        self.head = OutputHead(model, shape or LogitShape())
        self.noise: EmbeddingNoise | None = None
        """What is added to embedded tokens in training."""
        self.routers: Routers | None = None
        """What is asked of a mixture of experts beside the method's loss."""
        if layout == "packed":
            compat.use_forest_attention(model)
        else:
            compat.use_plain_attention(model)

    @property
    def can_share(self) -> bool:
        """Whether a token's hidden state depends on what stands before it and on nothing else.

        Then rows may share what they begin with. Not so without packing, nor where dropout or noise is drawn.
        """
        adapter = peft_of(self.model)
        if self.layout != "packed" or self.noise is not None or (adapter is not None and adapter.random):
            return False
        return not any(map(_dropout, self.model.modules()))

    def forward(self, batch: Batch) -> Tensor:
        """Log-probability of every prediction, [N], in fp32."""
        if self.layout == "plain":
            return self._plain(batch)["logp"]
        return self.head.logprobs(self._hidden(batch), batch.target_N)

    def sketch(self, batch: Batch) -> Tensor:
        """One number for each prediction, [N], by which layouts and layers are compared."""
        return self(batch)

    def statistics(self, batch: Batch, names: Sequence[Statistic]) -> dict[str, Tensor]:
        """`logp` of every prediction and what else is asked of its distribution, [N] each, in fp32."""
        if self.layout == "plain":
            return self._plain(batch, names)
        return self.head.statistics(self._hidden(batch), batch.target_N, names)

    def linear_loss(self, batch: Batch, coefficient_N: Tensor) -> tuple[Tensor, Tensor]:
        """Σ coefficient · logp, differentiable, and logp [N] detached; cheaper than `forward` for such losses."""
        if self.layout == "plain":
            logp_N = self._plain(batch)["logp"]
            return (coefficient_N * logp_N).sum(), logp_N.detach()
        return self.head.linear_loss(self._hidden(batch), batch.target_N, coefficient_N)

    def sampled_loss(self, batch: Batch, coefficient_N: Tensor, generator: torch.Generator) -> Tensor:
        """Σ coefficient · logp of targets that are drawn from the model itself, differentiable but for the draw."""
        if self.layout == "plain":
            logits_NV = self._plain_logits(batch)
            target_N = gumbel_argmax(logits_NV.detach(), generator)
            return (coefficient_N * of_logits(logits_NV, target_N, ())["logp"]).sum()
        hidden_ND = self._hidden(batch)
        target_N = sampled_targets(*self.head.inputs(hidden_ND.detach()), self.head.shape, generator)
        return self.head.linear_loss(hidden_ND, target_N, coefficient_N)[0]

    def divergence(self, batch: Batch, teacher: Teacher, measure: Measure) -> tuple[Tensor, Tensor]:
        """Log-probability of every prediction and its divergence from the teacher, [N] each, in fp32."""
        if self.layout == "plain":
            return teachers.of_logits(self._plain_logits(batch), batch.target_N, teacher, measure)
        return self.head.divergence(self._hidden(batch), batch.target_N, teacher, measure)

    def linear_divergence(
        self,
        batch: Batch,
        teacher: Teacher,
        measure: Measure,
        coefficient_N: Tensor,
        of_divergence_N: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Σ coefficient · logp + of_divergence · divergence, differentiable, and both [N] detached."""
        if self.layout == "plain":
            logp_N, div_N = self.divergence(batch, teacher, measure)
            loss = (coefficient_N * logp_N + of_divergence_N * div_N).sum()
            return loss, logp_N.detach(), div_N.detach()
        return self.head.linear_divergence(
            self._hidden(batch), batch.target_N, teacher, measure, coefficient_N, of_divergence_N
        )

    def as_teacher(self, batch: Batch) -> TeacherHead | TeacherLogits:
        """What this model makes of every prediction, for another one to be compared with."""
        if self.layout == "plain":
            return TeacherLogits(self._plain_logits(batch))
        return TeacherHead(*self.head.inputs(self._hidden(batch)), self.head.shape)

    def _hidden(self, batch: Batch) -> Tensor:
        """Hidden state that makes each prediction, [N, D]."""
        backbone = self.model.base_model
        if self.layout == "packed":
            forest = Forest(tuple(batch.starts_S1.tolist()), tuple(batch.parent_S.tolist()))
            with self._reading(batch):
                hidden_TD = backbone(
                    input_ids=batch.tokens_T[None],
                    position_ids=batch.positions_T[None],
                    use_cache=False,
                    forest=forest,
                ).last_hidden_state[0]
            return hidden_TD.index_select(0, batch.source_N)
        pieces = []
        for index_P, source_M in self._documents(batch):
            with self._reading(batch, index_P):
                found = backbone(input_ids=batch.tokens_T[index_P][None], use_cache=False)
            pieces.append(found.last_hidden_state[0].index_select(0, source_M))
        return torch.cat(pieces)[self._order(batch)]

    def _plain(self, batch: Batch, names: Sequence[Statistic] = ()) -> dict[str, Tensor]:
        return of_logits(self._plain_logits(batch), batch.target_N, names)

    def _plain_logits(self, batch: Batch) -> Tensor:
        """The model's own logits of every prediction, [N, V], in fp32."""
        pieces = []
        for index_P, source_M in self._documents(batch):
            with self._reading(batch, index_P):
                logits_PV = self.model(input_ids=batch.tokens_T[index_P][None], use_cache=False).logits[0]
            logits_MV = logits_PV.index_select(0, source_M)
            accumulate = torch.promote_types(logits_MV.dtype, torch.float32)
            pieces.append(logits_MV.to(accumulate))
        return torch.cat(pieces)[self._order(batch)]

    def _reading(self, batch: Batch, index_P: Tensor | None = None) -> AbstractContextManager[None]:
        """While it holds, the model reads these tokens of the stream: with noise, if there is any."""
        if self.routers is not None:
            self.routers.reads(batch, index_P)
        if self.noise is None or not self.training:
            return nullcontext()
        embedding = self.model.get_input_embeddings()
        assert isinstance(embedding, nn.Module)
        return self.noise.added(embedding, batch, index_P)

    def _documents(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """For each sequence where its tokens are, from its root on, [P], and its predictions start in them, [M]."""
        starts = batch.starts_S1.tolist()
        documents = []
        for number, path in enumerate(batch.paths()):
            index_P = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in path]).to(
                batch.tokens_T.device
            )
            source_M = torch.searchsorted(index_P, batch.source_N[batch.sequence_N == number])
            documents.append((index_P, source_M))
        return documents

    def _order(self, batch: Batch) -> Tensor:
        """Puts predictions gathered sequence by sequence back in the batch's order."""
        return torch.argsort(torch.argsort(batch.sequence_N, stable=True))


def _dropout(module: nn.Module) -> float:
    """The largest dropout probability that the module itself holds."""
    held = (getattr(module, name, 0.0) for name in ("p", "dropout", "attention_dropout", "attn_dropout"))
    return max((float(value) for value in held if isinstance(value, float | int)), default=0.0)
