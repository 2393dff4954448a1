"""The section that says how frozen weights are stored."""

from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from luthier.config.problems import Problem, impossible
from luthier.config.section import Section, Text

EIGHT_BITS = ("int8", "fp8")
"""Schemes whose codes a GPU can multiply."""


class QuantSection(Section):
    """Frozen linear layers in few bits, with `lora` (QLoRA). `quant: nf4` is short for `quant: {name: nf4}`. Further
    keys are the scheme's own (`luthier schema` lists them)."""

    model_config = ConfigDict(extra="allow")

    name: Text = "nf4"
    """Name of a file in `kernels/quant/`."""

    products: bool = False
    """`int8` and `fp8`: products with stored weights stay in 8 bits, forward and for the gradient of the input. What
    goes in is rounded, with a scale for each token. Made for GPUs; on a CPU it is slower."""

    skip: list[Text] = Field(default_factory=list)
    """Modules that stay in the model's precision, such as `down_proj` or `model.layers.0`. The head always does."""

    @model_validator(mode="after")
    def _products_are_in_8_bits(self) -> Self:
        if self.products and self.name not in EIGHT_BITS:
            text = (
                f"quant.products is true, but quant.name: {self.name} has no products in 8 bits; leave it out, or "
                f"set quant.name to {' or '.join(EIGHT_BITS)}"
            )
            raise impossible(Problem("quant.products", text))
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The scheme's own keys."""
        return dict(self.model_extra or {})
