"""Embedded tokens and logits from tables in few bits, of which no more is decoded than is needed at once.

Shape suffixes: T tokens, V vocabulary, D hidden size, N hidden states.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from luthier.kernels.decoded_head import DecodedHead
from luthier.kernels.workspace import Workspace
from luthier.models.quantised.weight import StoredWeight


class StoredEmbedding(nn.Module):
    """Takes the place of an embedding, frozen: decodes the rows that are asked for and no others.

    `base` is the module whose place it took, without its weight, for what it does beside the look-up.
    """

    def __init__(self, table: StoredWeight, base: nn.Embedding):
        super().__init__()
        self.num_embeddings, self.embedding_dim = table.shape
        self.base = base
        base.weight = nn.Parameter(base.weight.new_empty(0, self.embedding_dim), requires_grad=False)
        base.padding_idx = None  # torch wants it to be a row; nothing else depends on it in a frozen table
        self.table = table

    @property
    def weight(self) -> Tensor:
        """The decoded table [V, D], a new tensor each time. Costs what storing it saves."""
        return self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        rows_TD = self.table.stored.rows(tokens.reshape(-1)).weight()
        if type(self.base).forward is nn.Embedding.forward:
            return rows_TD.view(*tokens.shape, self.embedding_dim)
        place = torch.arange(len(rows_TD), device=tokens.device).view(tokens.shape)
        return functional_call(self.base, {"weight": rows_TD}, (place,))

    def opened(self) -> nn.Embedding:
        """The plain embedding, with the decoded table."""
        self.base.weight = nn.Parameter(self.weight, requires_grad=False)
        return self.base.train(self.training)


class StoredHead(nn.Module):
    """Takes the place of the linear layer that makes logits, frozen: logits are formed some tokens of the vocabulary at
    a time. Where it shares its weight with the embeddings, it shares their `table`."""

    def __init__(self, table: StoredWeight, bias: nn.Parameter | None = None):
        super().__init__()
        self.out_features, self.in_features = table.shape
        self.table = table
        self.bias = bias
        self.decoded = DecodedHead(table.stored, Workspace())
        """What ops on the head take in the place of the weight."""

    @property
    def weight(self) -> Tensor:
        """The decoded weight [V, D], a new tensor each time. Costs what storing it saves."""
        return self.table.weight

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return self.table.dtype

    def forward(self, x: Tensor) -> Tensor:
        logits = _Logits.apply(x, self)
        assert isinstance(logits, Tensor)
        return logits if self.bias is None else logits + self.bias

    def opened(self) -> nn.Linear:
        """A plain linear layer with the decoded weight."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.weight, requires_grad=False)
        plain.register_parameter("bias", self.bias)
        return plain.train(self.training)


class _Logits(torch.autograd.Function):
    """x·Wᵀ, block by block in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: StoredHead) -> Tensor:
        ctx.head = head
        out = x.new_empty(*x.shape[:-1], head.out_features)
        head.decoded.logits_(x.reshape(-1, head.in_features), None, out.view(-1, head.out_features))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_NV = grads[0].reshape(-1, ctx.head.out_features)
        of_x = grad_NV.new_empty(len(grad_NV), ctx.head.in_features)
        ctx.head.decoded.input_gradient_(grad_NV, of_x)
        return of_x.view(*grads[0].shape[:-1], ctx.head.in_features), None


def num_rows(embedding: nn.Module) -> int:
    """How many tokens an embedding knows. Decodes nothing."""
    if isinstance(embedding, StoredEmbedding):
        return embedding.num_embeddings
    weight = embedding.weight
    assert isinstance(weight, Tensor)
    return len(weight)
