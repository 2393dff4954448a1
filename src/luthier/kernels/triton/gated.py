"""The gated product act(gate) · up of an MLP on a GPU, one pass each way.

    silu       a = g·σ(g)                       a' = σ(g)·(1 + g·(1 - σ(g)))
    gelu_tanh  a = g·σ(2u)                      a' = σ(2u) + g·σ(2u)·(1 - σ(2u))·2u'
    gelu       a = g·Φ(g)                       a' = Φ(g) + g·φ(g)

with u = sqrt(2/pi)·(g + 0.044715·g³): 0.5·(1 + tanh(u)) equals σ(2u), so no tanh is needed.

The backward pass computes the activation again instead of keeping it, and writes the product too where the adapter's
gradient needs it. Every element is read before it is written, by the same program: outputs may be inputs.

Shape suffixes: T tokens, I intermediate features.
"""

import torch
from torch import Tensor

from luthier.kernels.triton.launch import ELEMENTS, block, check, jit, on_device, options, tl, triton


@jit
def _activation(gate, KIND: tl.constexpr):
    """Value and derivative; what a caller does not use, the compiler drops."""
    if KIND == "gelu":
        value = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
        derivative = value + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    elif KIND == "gelu_tanh":
        square = gate * gate
        twice = 1.5957691216057308 * gate * (1.0 + 0.044715 * square)
        value = 1.0 / (1.0 + tl.exp(-twice))
        slope = 1.5957691216057308 * (1.0 + 0.134145 * square)
        derivative = value + gate * slope * value * (1.0 - value)
    else:
        value = 1.0 / (1.0 + tl.exp(-gate))
        derivative = value + gate * value * (1.0 - value)
    return gate * value, derivative


@jit
def _forward_kernel(
    gate_ptr,
    up_ptr,
    out_ptr,
    width,
    blocks,
    gate_stride,
    up_stride,
    out_stride,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_ptr + row * gate_stride + column, inside, 0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, inside, 0.0).to(tl.float32)
    value, _ = _activation(gate, KIND)
    tl.store(out_ptr + row * out_stride + column, (value * up).to(out_ptr.dtype.element_ty), inside)


@jit
def _backward_kernel(
    grad_ptr,
    gate_ptr,
    up_ptr,
    gate_grad_ptr,
    up_grad_ptr,
    product_ptr,
    width,
    blocks,
    grad_stride,
    gate_stride,
    up_stride,
    gate_grad_stride,
    up_grad_stride,
    product_stride,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    grad = tl.load(grad_ptr + row * grad_stride + column, inside, 0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + column, inside, 0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, inside, 0.0).to(tl.float32)
    value, derivative = _activation(gate, KIND)
    gate_grad = (grad * up * derivative).to(gate_grad_ptr.dtype.element_ty)
    up_grad = (grad * value).to(up_grad_ptr.dtype.element_ty)
    tl.store(gate_grad_ptr + row * gate_grad_stride + column, gate_grad, inside)
    tl.store(up_grad_ptr + row * up_grad_stride + column, up_grad, inside)
    if product_ptr is not None:
        product = (value * up).to(product_ptr.dtype.element_ty)
        tl.store(product_ptr + row * product_stride + column, product, inside)


def forward(gate_TI: Tensor, up_TI: Tensor, kind: str, *, out: Tensor | None = None) -> Tensor:
    """act(gate) · up, into `out` (may be gate or up)."""
    out = torch.empty_like(gate_TI, memory_format=torch.contiguous_format) if out is None else out
    check(gate_TI, up_TI, out)
    num_tokens, width = gate_TI.shape
    columns, blocks = _blocks(width)
    if gate_TI.numel():
        with on_device(gate_TI):
            _forward_kernel[(num_tokens * blocks,)](
                gate_TI,
                up_TI,
                out,
                width,
                blocks,
                gate_TI.stride(0),
                up_TI.stride(0),
                out.stride(0),
                KIND=kind,
                BLOCK=columns,
                **options(columns),
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
    """Gradients of gate and up; act(gate) · up goes to `product` if given. Outputs may be inputs."""
    gate_grad = (
        torch.empty_like(gate_TI, memory_format=torch.contiguous_format) if gate_grad is None else gate_grad
    )
    up_grad = torch.empty_like(up_TI, memory_format=torch.contiguous_format) if up_grad is None else up_grad
    check(grad_TI, gate_TI, up_TI, gate_grad, up_grad, product)
    num_tokens, width = gate_TI.shape
    columns, blocks = _blocks(width)
    if gate_TI.numel():
        with on_device(gate_TI):
            _backward_kernel[(num_tokens * blocks,)](
                grad_TI,
                gate_TI,
                up_TI,
                gate_grad,
                up_grad,
                product,
                width,
                blocks,
                grad_TI.stride(0),
                gate_TI.stride(0),
                up_TI.stride(0),
                gate_grad.stride(0),
                up_grad.stride(0),
                product.stride(0) if product is not None else 0,
                KIND=kind,
                BLOCK=columns,
                **options(columns),
            )
    return gate_grad, up_grad


def _blocks(width: int) -> tuple[int, int]:
    """Columns of one tile, and how many tiles a row takes."""
    columns = min(ELEMENTS // 2, block(width))
    return columns, triton.cdiv(width, columns)
