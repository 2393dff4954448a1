"""The first singular values of a large matrix (Halko, Martinsson and Tropp, 2009, arXiv:0909.4061)."""

import torch
from torch import Tensor


def first_values(
    matrix_MK: Tensor, number: int, generator: torch.Generator | None = None, rounds: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """U [M, N], S [N] and Vᵀ [N, K] of the `number` largest singular values, by subspace iteration.

    The starting directions are drawn on the CPU; `rounds` of iteration sharpen them.
    """
    inputs = matrix_MK.shape[1]
    size = min(2 * number + 8, *matrix_MK.shape)
    drawn_KS = torch.randn(inputs, size, generator=generator).to(matrix_MK)
    basis_MS = torch.linalg.qr(matrix_MK @ drawn_KS)[0]
    for _ in range(rounds):
        basis_KS = torch.linalg.qr(matrix_MK.T @ basis_MS)[0]
        basis_MS = torch.linalg.qr(matrix_MK @ basis_KS)[0]
    left_SS, values_S, right_SK = torch.linalg.svd(basis_MS.T @ matrix_MK, full_matrices=False)
    return basis_MS @ left_SS[:, :number], values_S[:number], right_SK[:number]
