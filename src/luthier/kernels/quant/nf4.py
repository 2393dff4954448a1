"""NF4: 4 bits a weight on quantiles of a normal distribution (QLoRA, arXiv:2305.14314, section 3)."""

from typing import ClassVar

from luthier.config.settings import settings
from luthier.kernels import nf4
from luthier.kernels.quant._four_bits import Block, FourBits


@settings
class NF4(FourBits):
    """4-bit quantiles of a normal distribution in blocks with a scale each: 4.13 bits a weight."""

    values: ClassVar = nf4.VALUES
    most_error: ClassVar = 0.12

    double: bool = True
    """Store the scales in 8 bits as well."""

    block: Block = 64
    """Weights that share a scale."""
