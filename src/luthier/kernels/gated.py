"""The gated product of an MLP, act(gate) · up (SwiGLU, GEGLU; Shazeer, 2020, arXiv:2002.05202), and its gradient.

`reference` is the definition. `forward` and `backward` are what fused layers call: one pass, no autograd, outputs
given or made, rows that may be slices of wider buffers (last stride 1), in place of their inputs if wished.
Arithmetic is fp32 (fp64 for fp64), and each result is rounded once. CPU: C++ for fp32 and bf16, plain torch
otherwise; CUDA: Triton.

    dgate = g · up · act'(gate),   dup = g · act(gate)

Shape suffixes: T tokens, I inner features.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels import native, triton

KINDS = ("silu", "gelu_tanh", "gelu")  # gelu_tanh: gelu with tanh in place of erf

_FORWARD = "ppp ii iii"
_BACKWARD = "pppppp ii iiiiii"


def reference(gate_TI: Tensor, up_TI: Tensor, kind: str) -> Tensor:
    """The definition, in the dtype of the gate."""
    return _activation(gate_TI, kind) * up_TI


def forward(gate_TI: Tensor, up_TI: Tensor, kind: str, *, out: Tensor | None = None) -> Tensor:
    """act(gate) · up, in `out`, which may be the gate or `up`."""
    assert kind in KINDS, kind
    if triton.serves(gate_TI):
        from luthier.kernels.triton import gated as device

        return device.forward(gate_TI, up_TI, kind, out=out)
    out = _like(gate_TI) if out is None else out
    if (found := native.library_for(gate_TI, up_TI, out)) is None:
        wide = torch.promote_types(gate_TI.dtype, torch.float32)
        return out.copy_(_activation(gate_TI.to(wide), kind).mul_(up_TI))
    found.function(f"gated_forward_{kind}_{native.SUFFIX[out.dtype]}", _FORWARD)(
        *map(native.pointer, (gate_TI, up_TI, out)), *out.shape, *_row_strides(gate_TI, up_TI, out)
    )
    return out


def backward(
    grad_TI: Tensor,
    gate_TI: Tensor,
    up_TI: Tensor,
    kind: str,
    *,
    gate_grad: Tensor | None = None,
    up_grad: Tensor | None = None,
    product: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the gate and of `up`. Writes act(gate) · up to `product` as well, if one is given.

    Each of the three results may take the place of an input (not the same one).
    """
    assert kind in KINDS, kind
    if triton.serves(gate_TI):
        from luthier.kernels.triton import gated as device

        return device.backward(
            grad_TI, gate_TI, up_TI, kind, gate_grad=gate_grad, up_grad=up_grad, product=product
        )
    gate_grad = _like(gate_TI) if gate_grad is None else gate_grad
    up_grad = _like(up_TI) if up_grad is None else up_grad
    tensors = (grad_TI, gate_TI, up_TI, gate_grad, up_grad, product)
    if (found := native.library_for(*tensors)) is None:
        return _plain_backward(grad_TI, gate_TI, up_TI, kind, gate_grad, up_grad, product)
    found.function(f"gated_backward_{kind}_{native.SUFFIX[gate_TI.dtype]}", _BACKWARD)(
        *map(native.pointer, tensors), *gate_TI.shape, *_row_strides(*tensors)
    )
    return gate_grad, up_grad


def _plain_backward(
    grad_TI: Tensor,
    gate_TI: Tensor,
    up_TI: Tensor,
    kind: str,
    gate_grad: Tensor,
    up_grad: Tensor,
    product: Tensor | None,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(gate_TI.dtype, torch.float32)
    grad_TI, gate_TI, up_TI = grad_TI.to(wide), gate_TI.to(wide), up_TI.to(wide)
    active_TI = _activation(gate_TI, kind)
    into_gate = grad_TI * up_TI
    if kind == "silu":
        into_gate = torch.ops.aten.silu_backward(into_gate, gate_TI)
    else:
        into_gate = torch.ops.aten.gelu_backward(into_gate, gate_TI, approximate=_approximation(kind))
    into_up = grad_TI * active_TI
    # everything is formed before anything is written: results may take the place of inputs
    if product is not None:
        product.copy_(active_TI.mul_(up_TI))
    return gate_grad.copy_(into_gate), up_grad.copy_(into_up)


def _activation(gate_TI: Tensor, kind: str) -> Tensor:
    return F.silu(gate_TI) if kind == "silu" else F.gelu(gate_TI, approximate=_approximation(kind))


def _approximation(kind: str) -> str:
    return "tanh" if kind == "gelu_tanh" else "none"


def _like(x_TI: Tensor) -> Tensor:
    return torch.empty(x_TI.shape, dtype=x_TI.dtype, device=x_TI.device)


def _row_strides(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if tensor is None else tensor.stride(0) for tensor in tensors)


def cases(dtype: torch.dtype = torch.float64) -> list[dict[str, Any]]:
    """Small inputs: every kind; no token, one, several; odd widths; gates from the far left tail to the right."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    return [
        {"gate_TI": normal(*shape) * spread, "up_TI": normal(*shape), "kind": kind}
        for kind in KINDS
        for shape, spread in (((0, 8), 1.0), ((1, 1), 1.0), ((5, 16), 1.0), ((9, 37), 4.0))
    ]
