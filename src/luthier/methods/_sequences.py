"""From predictions to sequences, from sequences to pairs: what the losses on judged answers have in common.

All shapes follow from those of the batch, never from its values, so that a GPU need not wait and a recorded graph
holds for the next batch. What belongs to no row (padding) is told by `real`.

Shape suffixes: N predictions, Q sequences, P pairs.
"""

import torch
from torch import Tensor

from luthier.data.batch import Batch


def sums(value_N: Tensor, batch: Batch, weight_N: Tensor | None = None) -> Tensor:
    """Σ weight · value over the predictions of each sequence, [Q]; the weights are the batch's unless given."""
    weight_N = batch.weight_N if weight_N is None else weight_N
    total_Q = value_N.new_zeros(batch.num_sequences)
    return total_Q.index_add(0, batch.sequence_N, weight_N.to(value_N.dtype) * value_N)


def lengths(batch: Batch) -> Tensor:
    """Summed weights of each sequence, [Q]: its learned tokens, if all weigh 1. At least a little above 0."""
    return sums(torch.ones_like(batch.weight_N), batch).clamp(min=1e-6)


def real(batch: Batch) -> Tensor:
    """Whether each sequence belongs to a row, [Q]."""
    return batch.columns["row"] >= 0


def pairs(value_Q: Tensor) -> tuple[Tensor, Tensor]:
    """The values of the first and of the second sequence of each pair, [P] each, as `groups` says."""
    first_P, second_P = groups(value_Q, 2)
    return first_P, second_P


def groups(value_Q: Tensor, size: int) -> tuple[Tensor, ...]:
    """The values of the first, of the second ... sequence of each row, [P] each.

    All rows of the batch must have `size` sequences. Padding comes after them and makes rows of its own; what is
    left over is dropped.
    """
    return value_Q[: value_Q.numel() // size * size].view(-1, size).unbind(1)


def place_in_sequence(batch: Batch) -> Tensor:
    """How many predictions of its own sequence stand before each one, [N]."""
    order = torch.argsort(batch.sequence_N, stable=True)
    size_Q = torch.zeros(batch.num_sequences, dtype=torch.int64, device=order.device)
    size_Q = size_Q.index_add(0, batch.sequence_N, torch.ones_like(batch.sequence_N))
    first_Q = size_Q.cumsum(0) - size_Q
    place_N = torch.empty_like(order)
    place_N[order] = torch.arange(len(order), device=order.device)
    return place_N - first_Q[batch.sequence_N]


def total(value: Tensor, mask: Tensor) -> Tensor:
    """The sum of the values under the mask, whatever the others are."""
    return torch.where(mask, value, torch.zeros_like(value)).sum()
