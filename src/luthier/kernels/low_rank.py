"""The two small products of a LoRA layer's backward pass that read the wide gradient: dY·B and dYᵀ·low.

    low_grad = dY·B  [T, R]        b_grad = dYᵀ·low  [M, R]        low = x·Aᵀ, kept from the forward pass

dY is the widest tensor of the layer and R is tiny, so both products are bound by reading dY. On a GPU one kernel
reads it once for both; elsewhere they are two GEMMs.
The update's scale is the caller's: it belongs into B or into low once, not here.

Shape suffixes: T tokens, M outputs, R rank.
"""

from typing import Any

import torch
from torch import Tensor

from luthier.kernels import triton

MAX_RANK = 32  # above, the kernel's partial sums weigh as much as the second reading of dY that it saves
HALVES = (
    torch.bfloat16,
    torch.float16,
)  # in fp32 a tile and its B pass the shared memory of a multiprocessor


def reference(grad_TM: Tensor, b_MR: Tensor, low_TR: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, each product in at least fp32."""
    wide = torch.promote_types(grad_TM.dtype, torch.float32)
    grad_TM = grad_TM.to(wide)
    return grad_TM @ b_MR.to(wide), grad_TM.T @ low_TR.to(wide)


def backward(
    grad_TM: Tensor, b_MR: Tensor, low_TR: Tensor, *, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """dY·B in the dtype of dY, into `out` if given, and dYᵀ·low in fp32 (fp64 for fp64).

    All three in one dtype, last stride 1; rows may be slices of wider buffers. The same bits on every run.
    """
    if out is None:
        out = torch.empty(len(grad_TM), b_MR.shape[1], dtype=grad_TM.dtype, device=grad_TM.device)
    if _fits(grad_TM, b_MR) and triton.serves(grad_TM, b_MR, low_TR, out):
        from luthier.kernels.triton import low_rank as device

        return device.backward(grad_TM, b_MR, low_TR, out=out)
    torch.mm(grad_TM, b_MR, out=out)
    return out, _outer(grad_TM, low_TR)


def _fits(grad_TM: Tensor, b_MR: Tensor) -> bool:
    if b_MR.shape[1] > MAX_RANK or grad_TM.dtype not in HALVES or not grad_TM.is_cuda:
        return False
    # Turing has 64 KB of shared memory and no matrix units for bfloat16
    return torch.cuda.get_device_capability(grad_TM.device) >= (8, 0)


def _outer(grad_TM: Tensor, low_TR: Tensor) -> Tensor:
    wide = torch.promote_types(grad_TM.dtype, torch.float32)
    if grad_TM.is_cuda and grad_TM.dtype != wide:
        return torch.mm(grad_TM.T, low_TR, out_dtype=wide)
    return torch.mm(grad_TM.T, low_TR).to(wide)


def cases(dtype: torch.dtype = torch.float64) -> list[dict[str, Any]]:
    """Small inputs: no token, one, several tiles; odd widths; ranks that fill a tile and that do not."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    sizes = ((0, 8, 2), (1, 1, 1), (5, 33, 3), (70, 40, 16), (150, 290, 20))
    return [
        {"grad_TM": normal(tokens, outputs), "b_MR": normal(outputs, rank), "low_TR": normal(tokens, rank)}
        for tokens, outputs, rank in sizes
    ]
