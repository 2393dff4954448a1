"""A normal with deviation 1/r, B zero, as in the first code of LoRA (arXiv:2106.09685) and PEFT's `gaussian`."""

import torch
from torch import Tensor


def begin(
    weight_MK: Tensor, rank: int, scale: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A is drawn on the CPU, so that a seed gives the same adapter on every device."""
    outputs, inputs = weight_MK.shape
    return torch.randn(rank, inputs, generator=generator) / rank, torch.zeros(outputs, rank)
