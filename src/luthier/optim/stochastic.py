"""Weights of 16 bit without fp32 masters: each update is rounded up or down by chance, so that its mean is right.

A bfloat16 weight w cannot take an update below about w/512: rounded to nearest, it would be lost in every step. Rounded
to one of its two neighbours with the probability of how near it is (Gupta et al., 2015, arXiv:1502.02551; for training
in bfloat16: arXiv:2010.06192), it arrives in the mean:

    P(up) = (w - down) / (up - down)        E[rounded] = w

In bits: fp32 is bfloat16 with 16 bits more, so a uniform number of 16 bits is added to these, and they are cut off.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BITS = 16


@dataclass(frozen=True)
class StochasticRounding:
    """Draws by the seed of the run, the weight's number and its count of steps: the same on every rank and after a
    resume."""

    seed: int

    def write(self, wide: Tensor, out: Tensor, number: int, step: int) -> None:
        """Rounds fp32 numbers into a bfloat16 tensor of the same shape. What is not finite stays what it is."""
        generator = torch.Generator(wide.device)
        generator.manual_seed((self.seed * 1_000_003 + number) * 1_000_003 + step & (1 << 63) - 1)
        out.copy_(rounded_by_chance(wide, generator))


def rounded_by_chance(wide: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 numbers that are each one of their two neighbours in bfloat16, in the mean themselves. A number that
    bfloat16 has stays what it is, and so does what is not finite.
    """
    drawn = torch.randint(1 << BITS, wide.shape, generator=generator, dtype=torch.int32, device=wide.device)
    bits = drawn.add_(wide.view(torch.int32)).bitwise_and_(-(1 << BITS))
    return torch.where(wide.isfinite(), bits.view(torch.float32), wide)
