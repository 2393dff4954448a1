"""Linear layers of trained weights whose wide products are of 8-bit floats (E4M3), rounded anew each time.

    y[t, m]  = Σₖ x̂[t, k] · ŵ[m, k]        x̂ with a scale for each token,  ŵ with one for each output
    dx[t, k] = Σₘ ĝ[t, m] · ŵ'[m, k]       ĝ with a scale for each token,  ŵ' with one for each input
    dw[m, k] = Σₜ g[t, m] · x[t, k]        as it is: many small numbers are added up here

A scale is the largest number of its row divided by 448. Scales lie across the sum, never along it, so a token's output
does not depend on the tokens beside it and packing cannot change a gradient; one scale for a whole tensor would. That
the gradient of the weight stays exact costs a third of what could be saved (torchao's recipe
`rowwise_with_gw_hp`; 8-bit floats for training: arXiv:2209.05433). Rounding passes gradients straight through.

On a GPU from compute capability 8.9 on both products are single instructions of its matrix units, which has not been
measured; elsewhere the same numbers are made slowly.

Shape suffixes: T tokens, K inputs, M outputs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.kernels.eight_bits import by_token, multiplied

KIND = torch.float8_e4m3fn
UNIT = 16
"""Rows and columns that matrix units take at once."""


def why_not(num_out: int, num_in: int) -> str | None:
    """Why a layer of this shape stays as it is, in a few words; None if it can."""
    return f"its size is no multiple of {UNIT}" if num_out % UNIT or num_in % UNIT else None


def float8_linear(x: Tensor, weight_MK: Tensor, bias_M: Tensor | None) -> Tensor:
    """The layer's output, [..., M] in the dtype of x; differentiable in x, weight and bias."""
    y_TM = _Product.apply(x.reshape(-1, x.shape[-1]), weight_MK)
    assert isinstance(y_TM, Tensor)
    y = y_TM.view(*x.shape[:-1], len(weight_MK))
    return y if bias_M is None else y + bias_M.to(y.dtype)


def reference(x_TK: Tensor, weight_MK: Tensor) -> Tensor:
    """The definition: both sides rounded, then multiplied in fp32."""
    return seen(x_TK) @ seen(weight_MK).T


def seen(rows_NK: Tensor) -> Tensor:
    """What a product sees of these rows, in fp32."""
    codes_NK, scale_N1 = by_token(rows_NK.float(), KIND)
    return codes_NK.float() * scale_N1


def cases() -> list[dict[str, Any]]:
    """Inputs of several lengths, some rows far larger than others."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    return [
        {"x_TK": normal(num, 32) * 10 ** normal(num, 1), "weight_MK": normal(48, 32) * 10 ** normal(48, 1)}
        for num in (1, 7, 40)
    ]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_MK: Tensor) -> Tensor:
        ctx.save_for_backward(x_TK, weight_MK)
        x_scaled, w_scaled = by_token(x_TK.float(), KIND), by_token(weight_MK.float(), KIND)
        return multiplied(x_scaled, w_scaled, x_TK.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x_TK, weight_MK), grad_TM = ctx.saved_tensors, grads[0]
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            scaled = by_token(weight_MK.T.float(), KIND)
            of_x = multiplied(by_token(grad_TM.float(), KIND), scaled, grad_TM.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = (grad_TM.T @ x_TK.to(grad_TM.dtype)).to(weight_MK.dtype)
        return of_x, of_weight
