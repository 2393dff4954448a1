"""LoftQ: the adapter starts as what the weight lost when it was stored in few bits (Li et al., 2023, arXiv:2310.08659).

    W - Q = U·S·Vᵀ        s·B·A = U_r·S_r·V_rᵀ        Q what the stored weight decodes to

so that the model starts nearer to the original than the stored base alone: of all updates of rank r none is nearer.
This start is meant to count and is not taken off. It is the first of the paper's alternating steps; further ones would
store W - s·B·A instead of W, and the base would no longer be what its file and `quant` say.
"""

import torch
from torch import Tensor

from luthier.models.lora_init._decompose import first_values
from luthier.models.lora_init.kaiming import begin as begin  # until the original weights are read
from luthier.models.lora_init.pissa import shared_out


def from_original(weight_MK: Tensor, decoded_MK: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A [R, K] and B [M, R] from the original weight and what the stored one decodes to."""
    lost_MK = weight_MK.float() - decoded_MK.float()
    if min(lost_MK.shape) <= 4 * rank:
        left_MN, values_N, right_NK = torch.linalg.svd(lost_MK, full_matrices=False)
        return shared_out(left_MN[:, :rank], values_N[:rank], right_NK[:rank], scale)
    # what was lost looks like noise, whose singular values fall slowly: more rounds than usual
    return shared_out(*first_values(lost_MK, rank, torch.Generator().manual_seed(0), rounds=12), scale)
