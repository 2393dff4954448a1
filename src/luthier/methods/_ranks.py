"""Pairs that belong together by rank in the whole step: what the AOT losses need (arXiv:2406.05882).

Optimal transport between two sets of numbers of one size is sorting both: the k-th smallest of one belongs to the
k-th smallest of the other. Which number that is follows from all pairs of the step; the table is keyed by row.

Shape suffixes: L pairs of the step, P pairs of the batch.
"""

import torch
from torch import Tensor


def table(lines_L3: Tensor) -> Tensor:
    """From (row, a, b) of each pair of the step to (row, partner of a, partner of b), sorted by row, [L, 3].

    The partner of an `a` is the `b` of its rank, and the other way round.
    """
    if lines_L3.numel() == 0:
        return lines_L3.new_zeros(0, 3)
    lines_L3 = lines_L3[torch.argsort(lines_L3[:, 0], stable=True)]
    order_a, order_b = (torch.argsort(lines_L3[:, k], stable=True) for k in (1, 2))
    made = lines_L3.clone()
    made[order_a, 1] = lines_L3[order_b, 2]
    made[order_b, 2] = lines_L3[order_a, 1]
    return made


def partners(table_L3: Tensor, row_P: Tensor) -> tuple[Tensor, Tensor]:
    """The partners of the a and of the b of these rows, [P] each; anything for a row that is not in the table."""
    place_P = torch.searchsorted(table_L3[:, 0].contiguous(), row_P.to(table_L3.dtype))
    found_P3 = table_L3[place_P.clamp(max=len(table_L3) - 1)]
    return found_P3[:, 1], found_P3[:, 2]
