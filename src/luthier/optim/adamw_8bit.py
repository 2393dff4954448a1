"""AdamW with moments in 8 bits (Dettmers et al., 2021, arXiv:2110.02861).

Both moments lie in blocks of 256 on maps that keep small values exact, with a scale for each block: 2.03 bytes a
weight instead of 8. Weights with fewer than 4,096 elements keep whole moments. Adapters are small as they are, so it
pays where all weights are trained.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from luthier.config.settings import settings
from luthier.optim._blockwise import Format
from luthier.optim._thrifty_adam import ThriftyAdam


@settings
class AdamW8bit(ThriftyAdam):
    """AdamW with a quarter of its states, in blocks of 8-bit numbers."""

    formats: ClassVar = {"mean": Format(8, 256, "dynamic"), "square": Format(8, 256, "unsigned")}

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the running mean of gradients."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the running mean of squared gradients."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""
