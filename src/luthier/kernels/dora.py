"""The norms of DoRA (Liu et al., 2024, arXiv:2402.09353): the length of each output's row of W + s·B·A.

    ‖W + s·B·A‖² = ‖W‖² + 2s · Σ (W·Aᵀ ∘ B) + s² · Σ (B·A·Aᵀ ∘ B)          sums over the rank

so that no matrix of the weight's size is made. As in the paper (section 4.3), no gradient goes through them.

Shape suffixes: K inputs, M outputs, R rank.
"""

import torch
from torch import Tensor


def reference(weight_MK: Tensor, a_RK: Tensor, b_MR: Tensor, scale: float) -> Tensor:
    """The definition: the sum itself, then the lengths of its rows, [M]."""
    wide = torch.promote_types(weight_MK.dtype, torch.float32)
    return torch.linalg.vector_norm(weight_MK.to(wide) + scale * (b_MR @ a_RK).to(wide), dim=1)


@torch.no_grad()
def row_norms(weight_MK: Tensor, a_RK: Tensor, b_MR: Tensor, scale: float) -> Tensor:
    """The lengths of the rows of W + s·B·A, [M], in at least fp32."""
    wide = torch.promote_types(weight_MK.dtype, torch.float32)
    a_RK, b_MR = a_RK.to(wide), b_MR.to(wide)
    square_M = torch.linalg.vector_norm(weight_MK, dim=1, dtype=wide).square()
    cross_MR = (weight_MK @ a_RK.to(weight_MK.dtype).T).to(wide)
    both_MR = b_MR @ (a_RK @ a_RK.T)
    change_M = (b_MR * (2 * scale * cross_MR + scale**2 * both_MR)).sum(1)
    return (square_M + change_M).clamp(min=torch.finfo(wide).tiny).sqrt()


def cases(dtype: torch.dtype = torch.float64) -> list[dict[str, object]]:
    """Small weights and factors: none learned yet, a little, much more than the weight, and what cancels."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    a_RK, b_MR = normal(2, 5), normal(3, 2)
    weight_MK = normal(3, 5)
    return [
        {"weight_MK": weight_MK, "a_RK": a_RK, "b_MR": b_MR * size, "scale": 1.5}
        for size in (0.0, 0.1, 100.0)
    ] + [
        {
            "weight_MK": weight_MK,
            "a_RK": torch.cat([a_RK, a_RK]),
            "b_MR": torch.cat([b_MR, -b_MR], 1),
            "scale": 1.5,
        }
    ]
