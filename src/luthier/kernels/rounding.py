"""Linear layers that compute as if their weights were stored in few bits already, while these are trained.

    y = x̂·Ŵᵀ + bias        Ŵ = decode(encode(W + s·B·A))        x̂ = x, or x in 8 bits

Rounding has a derivative of zero almost everywhere, so gradients pass straight through it (Bengio et al., 2013,
arXiv:1308.3432): ∂Ŵ/∂W := 1 and ∂x̂/∂x := 1, whence

    dx = dy·Ŵ        dW = dyᵀ·x̂        dA = s·(dy·B)ᵀ·x̂        dB = s·dyᵀ·(x̂·Aᵀ)

That holds for weights beyond the end of the grid, too: with no gradient they would never come back. Scales have none of
their own. They are functions of the weights and follow them at every step; a scale's derivative would put the sum of
the errors of all weights of a block on its largest one.

Shape suffixes: T tokens, K inputs, M outputs, R rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.kernels.quant.base import Scheme
from luthier.kernels.quant.q8_0 import BLOCK, q8_codes

Inputs = Literal["int8", "q8_0"]


@dataclass(frozen=True)
class Rounding:
    """How weights and inputs of a layer are rounded."""

    scheme: Scheme
    inputs: Inputs | None = None
    """None: inputs stay as they are."""

    def weight(self, total_MK: Tensor, out_MK: Tensor) -> Tensor:
        """Writes the rounded weight into `out_MK` (any float dtype) and returns it."""
        return self.scheme.rounded(total_MK, out_MK)

    def seen(self, x: Tensor) -> Tensor:
        """What the product sees of its inputs [..., K]; `x` itself where they are not rounded."""
        if self.inputs is None:
            return x
        return INPUTS[self.inputs](x.reshape(-1, x.shape[-1])).view(x.shape)


@torch.no_grad()
def int8_by_token(x_TK: Tensor) -> Tensor:
    """Each token's numbers as signed bytes with a scale and a zero point of its own, found anew each time.

    scale = (max(x, 0) - min(x, 0)) / 255        code = clamp(round(x / scale) + zero, -128, 127)
    """
    wide = x_TK.float()
    low, high = wide.amin(1, keepdim=True).clamp(max=0), wide.amax(1, keepdim=True).clamp(min=0)
    scale_T1 = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
    zero_T1 = (-128 - (low / scale_T1).round()).clamp(-128, 127)
    codes = ((wide / scale_T1).round_() + zero_T1).clamp_(-128, 127)
    return (codes - zero_T1).mul_(scale_T1).to(x_TK.dtype)


@torch.no_grad()
def q8_by_block(x_TK: Tensor) -> Tensor:
    """32 numbers of a token at a time in Q8_0, as llama.cpp has them before a product on a CPU. Others stay."""
    if x_TK.shape[1] % BLOCK:
        return x_TK
    codes_GS, scale_G1 = q8_codes(x_TK)
    return codes_GS.mul_(scale_G1.float()).view(x_TK.shape).to(x_TK.dtype)


INPUTS: dict[Inputs, Callable[[Tensor], Tensor]] = {"int8": int8_by_token, "q8_0": q8_by_block}


def total_weight(weight_MK: Tensor, update: tuple[Tensor, Tensor, float] | None) -> Tensor:
    """W + s·B·A in at least fp32, as it is when it is merged; `update` are A, B and s."""
    wide = weight_MK.detach().to(torch.promote_types(weight_MK.dtype, torch.float32))
    if update is None:
        return wide
    a_RK, b_MR, scale = update
    return wide + ((b_MR.detach() @ a_RK.detach()) * scale).to(wide.dtype)


def rounded_linear(
    x: Tensor,
    weight_MK: Tensor,
    bias_M: Tensor | None,
    rounding: Rounding,
    update: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """The layer's output, [..., M] in the dtype of x; differentiable in x, W, bias, A and B."""
    a_RK, b_MR, scale = update or (None, None, 1.0)
    y = _Product.apply(x, weight_MK, a_RK, b_MR, scale, rounding)
    assert isinstance(y, Tensor)
    return y if bias_M is None else y + bias_M.to(y.dtype)


class _Product(torch.autograd.Function):
    """The product, its weight rounded anew in each direction, so that the graph holds no second weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_MK: Tensor,
        a_RK: Tensor | None,
        b_MR: Tensor | None,
        scale: float,
        rounding: Rounding,
    ) -> Tensor:
        ctx.save_for_backward(x, weight_MK, a_RK, b_MR)
        ctx.scale, ctx.rounding = scale, rounding
        return F.linear(rounding.seen(x), _rounded(weight_MK, a_RK, b_MR, scale, rounding, x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight_MK, a_RK, b_MR = ctx.saved_tensors
        grad, scale, need = grads[0], ctx.scale, ctx.needs_input_grad
        of_x = of_weight = of_a = of_b = None
        if need[0]:
            of_x = grad @ _rounded(weight_MK, a_RK, b_MR, scale, ctx.rounding, grad.dtype)
        seen_TK = ctx.rounding.seen(x).reshape(-1, x.shape[-1])
        grad_TM = grad.reshape(-1, grad.shape[-1])
        if need[1]:
            of_weight = (grad_TM.T @ seen_TK).to(weight_MK.dtype)
        if need[2]:
            of_a = scale * ((grad_TM @ b_MR.to(grad.dtype)).T @ seen_TK).to(a_RK.dtype)
        if need[3]:
            of_b = scale * (grad_TM.T @ (seen_TK @ a_RK.to(x.dtype).T)).to(b_MR.dtype)
        return of_x, of_weight, of_a, of_b, None, None


def _rounded(
    weight_MK: Tensor,
    a_RK: Tensor | None,
    b_MR: Tensor | None,
    scale: float,
    rounding: Rounding,
    dtype: torch.dtype,
) -> Tensor:
    total_MK = total_weight(weight_MK, None if a_RK is None or b_MR is None else (a_RK, b_MR, scale))
    return rounding.weight(total_MK, torch.empty_like(total_MK, dtype=dtype))
