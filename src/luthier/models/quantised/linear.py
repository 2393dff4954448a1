"""A frozen linear layer whose weight is stored in few bits.

    y = x·Wᵀ + bias        W = decode(parts), made for the product and thrown away, in the backward pass once more

Where products stay in 8 bits (`quant.products`), it is never decoded while it is trained beside.

Shape suffixes: K inputs, M outputs, N rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from luthier.kernels import eight_bits
from luthier.kernels.quant.base import Stored
from luthier.kernels.workspace import Workspace
from luthier.models.quantised.weight import StoredWeight


class QuantLinear(StoredWeight):
    """Takes the place of an `nn.Linear`. The parts of the weight are buffers; its bias stays what it was."""

    def __init__(self, stored: Stored, bias: nn.Parameter | None = None):
        super().__init__(stored)
        self.out_features, self.in_features = stored.shape
        self.bias = bias
        self.eight_bits = False
        """Whether products with the weight stay in 8 bits (kernels/eight_bits.py) where gradients are made."""
        self.scratch = Workspace()
        """Where the weight is decoded for a product; one for all layers of a model."""

    def decoded(self, like: Tensor) -> Tensor:
        """The decoded weight in the dtype of `like`, valid until the next layer decodes its own."""
        empty = torch.empty(0, dtype=self.dtype, device=self.device)
        return self.stored.write(self.scratch.take("decoded", *self.shape, like=empty)).to(like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = _Product.apply(x, self, self.eight_bits and (self.training or torch.is_grad_enabled()))
        assert isinstance(y, Tensor)
        return y if self.bias is None else y + self.bias

    def opened(self) -> nn.Linear:
        """A plain linear layer with the decoded weight."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.weight, requires_grad=False)
        plain.register_parameter("bias", self.bias)
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.stored.scheme}"


class _Product(torch.autograd.Function):
    """x·Wᵀ with W decoded anew in each direction, so that the graph holds no decoded weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantLinear, in_8_bits: bool) -> Tensor:
        ctx.layer, ctx.in_8_bits = layer, in_8_bits
        if in_8_bits:
            out = x.new_empty(*x.shape[:-1], layer.out_features)
            eight_bits.forward(x.reshape(-1, x.shape[-1]), layer.stored, out.view(-1, layer.out_features))
            return out
        return F.linear(x, layer.decoded(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not ctx.needs_input_grad[0]:
            return None, None, None
        grad, layer = grads[0], ctx.layer
        if ctx.in_8_bits:
            of_x = eight_bits.input_gradient(grad.reshape(-1, grad.shape[-1]), layer.stored)
            return of_x.view(*grad.shape[:-1], layer.in_features), None, None
        return grad @ layer.decoded(grad), None, None
