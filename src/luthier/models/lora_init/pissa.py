"""PiSSA: the adapter starts as the principal part of the weight (Meng et al., 2024, arXiv:2404.02948).

W = U·S·Vᵀ        s·B·A = U_r·S_r·V_rᵀ        B = U_r·√(S_r/s)    A = √(S_r/s)·V_rᵀ
"""

import torch
from torch import Tensor


def begin(
    weight_MK: Tensor, rank: int, scale: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """By the whole singular value decomposition; `pissa_fast` finds the first values alone."""
    left_MN, values_N, right_NK = torch.linalg.svd(weight_MK.float(), full_matrices=False)
    return shared_out(left_MN[:, :rank], values_N[:rank], right_NK[:rank], scale)


def shared_out(left_MR: Tensor, values_R: Tensor, right_RK: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """A and B with s·B·A = U·S·Vᵀ, each with the root of the singular values."""
    root_R = (values_R / scale).sqrt()
    return root_R[:, None] * right_RK, left_MR * root_R
