"""AdamW with moments in 4 bits (Li et al., 2023, arXiv:2309.01432).

Both moments lie in blocks of 128, with a scale for each block: 1.06 bytes a weight instead of 8. The map of squares has
no zero, or a block with one large square would leave the others to be divided by. Weights with fewer than 4,096
elements keep whole moments. The paper's scales by rows and columns are left out: blocks serve every shape.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from luthier.config.settings import settings
from luthier.optim._blockwise import Format
from luthier.optim._thrifty_adam import ThriftyAdam


@settings
class AdamW4bit(ThriftyAdam):
    """AdamW with an eighth of its states, in blocks of 4-bit numbers."""

    formats: ClassVar = {"mean": Format(4, 128, "dynamic"), "square": Format(4, 128, "linear")}

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the running mean of gradients."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the running mean of squared gradients."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""
