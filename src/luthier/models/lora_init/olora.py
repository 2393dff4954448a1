"""OLoRA: the adapter starts as the first columns of the weight's QR decomposition (arXiv:2406.01775).

W = Q·R        B = the first r columns of Q        A = the first r rows of R
"""

import torch
from torch import Tensor


def begin(
    weight_MK: Tensor, rank: int, scale: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """B has orthonormal columns."""
    left_MN, right_NK = torch.linalg.qr(weight_MK.float())
    return right_NK[:rank].contiguous(), left_MN[:, :rank].contiguous()
