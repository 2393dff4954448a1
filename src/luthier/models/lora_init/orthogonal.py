"""A and B random but B·A = 0: both mix rows of one random orthogonal matrix, A its odd ones and B its even ones.

So both get gradients from the first step and nothing has to be taken off (PEFT's `orthogonal`).
"""

import torch
from torch import Tensor

from luthier.errors import ModelError


def begin(
    weight_MK: Tensor, rank: int, scale: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Entries of A and B have the deviation 0.1·√½. Raises ModelError for odd ranks."""
    if rank % 2:
        raise ModelError(
            f"lora.init: orthogonal splits the rank in two halves, but it is {rank}. Make it even."
        )
    outputs, inputs = weight_MK.shape
    square_RR = torch.linalg.qr(torch.randn(rank, rank, generator=generator))[0]
    a_RK = square_RR[0::2].T @ torch.randn(rank // 2, inputs, generator=generator)
    b_MR = torch.randn(outputs, rank // 2, generator=generator) @ square_RR[1::2]
    return a_RK / 10, b_MR / 10
