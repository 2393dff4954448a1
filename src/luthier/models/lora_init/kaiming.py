"""The usual start, as PEFT has it: A uniform in ±1/√K (Kaiming, a = √5), B zero."""

import math

import torch
from torch import Tensor, nn


def begin(
    weight_MK: Tensor, rank: int, scale: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A is drawn on the CPU, so that a seed gives the same adapter on every device."""
    outputs, inputs = weight_MK.shape
    a_RK = torch.empty(rank, inputs)
    nn.init.kaiming_uniform_(a_RK, a=math.sqrt(5), generator=generator)
    return a_RK, torch.zeros(outputs, rank)
