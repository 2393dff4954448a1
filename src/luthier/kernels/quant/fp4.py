"""FP4: 4 bits a weight as floats with 2 bits of exponent and 1 of fraction, in blocks (arXiv:2305.14314, section 4)."""

from typing import ClassVar

from luthier.config.settings import settings
from luthier.kernels.quant._four_bits import Block, FourBits

VALUES = tuple(sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3))
"""Sign, then exponent and fraction, as bitsandbytes orders them; the largest magnitude is 1."""


@settings
class FP4(FourBits):
    """4-bit floats in blocks with a scale each. NF4 is nearer to normally distributed weights."""

    values: ClassVar = VALUES
    most_error: ClassVar = 0.16

    double: bool = True
    """Store the scales in 8 bits as well."""

    block: Block = 64
    """Weights that share a scale."""
