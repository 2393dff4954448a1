"""A linear layer with a low-rank update (LoRA; Hu et al., 2021, arXiv:2106.09685).

    y = x·Wᵀ + bias + s · ((x ∘ mask)·Aᵀ)·Bᵀ

`reference` is the definition. `lora_linear` is the same sum with fewer passes over memory, for layers that run plain;
fused layers put the update into the product itself (linears.py).

Precision: everything is computed in the dtype of x. The fp32 masters A and B are cast to it once per call;
the product with Aᵀ is scaled by s while it is only r wide; the two products are then added. Gradients reach
the masters through the cast, so they arrive in fp32.

Shape suffixes: K inputs, M outputs, R rank. x and mask are [..., K] with any number of leading dimensions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(
    x: Tensor,
    weight_MK: Tensor,
    bias_M: Tensor | None,
    a_RK: Tensor,
    b_MR: Tensor,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """The definition: base output and update computed apart, then added. Returns [..., M]."""
    dropped = x if mask is None else x * mask
    low = scale * F.linear(dropped, a_RK.to(x.dtype))
    return F.linear(x, weight_MK, bias_M) + F.linear(low, b_MR.to(x.dtype))


def lora_linear(
    x: Tensor,
    weight_MK: Tensor,
    bias_M: Tensor | None,
    a_RK: Tensor,
    b_MR: Tensor,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Output of a linear layer and its adapter, [..., M] in the dtype of x.

    `mask` is what `dropout_mask` draws: 0 where an input of the adapter is dropped, 1 / (1 - p) elsewhere.
    """
    dropped = x if mask is None else x * mask
    low_NR = F.linear(dropped, a_RK.to(x.dtype)).mul_(scale).reshape(-1, a_RK.shape[0])
    y_NM = F.linear(x.reshape(-1, x.shape[-1]), weight_MK, bias_M)
    # Into the output of the base GEMM, which nothing else needs: saves a tensor of its size and one rounding.
    y_NM = y_NM.addmm_(low_NR, b_MR.to(x.dtype).T)
    return y_NM.view(*x.shape[:-1], weight_MK.shape[0])


def dropout_mask(x: Tensor, p: float) -> Tensor:
    """What inverted dropout multiplies x by: 0 with probability p, else 1 / (1 - p). Shape and dtype of x."""
    return torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)


def cases(dtype: torch.dtype = torch.float64) -> list[dict[str, Any]]:
    """Small inputs in `dtype` (masters at least fp32) for gradcheck and parity: bias, dropout, shapes."""
    generator = torch.Generator().manual_seed(0)
    master = torch.promote_types(dtype, torch.float32)

    def normal(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(of)

    def mask(*size: int) -> Tensor:
        return (torch.rand(*size, generator=generator) < 0.75).to(dtype) / 0.75

    shapes = (
        ((5,), 4, 3, 1),
        ((2, 3), 3, 6, 2),
        ((1,), 2, 2, 4),
        ((0,), 3, 2, 2),
    )  # the last: an empty stream
    return [
        {
            "x": normal(*lead, inputs),
            "weight_MK": normal(outputs, inputs),
            "bias_M": normal(outputs) if biased else None,
            "a_RK": normal(rank, inputs, of=master),
            "b_MR": normal(outputs, rank, of=master),
            "scale": 1.5,
            "mask": mask(*lead, inputs) if dropped else None,
        }
        for lead, inputs, outputs, rank in shapes
        for biased in (False, True)
        for dropped in (False, True)
    ]
