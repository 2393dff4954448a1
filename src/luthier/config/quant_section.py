"""The section that says how frozen weights are stored."""

from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from luthier.config.plugins import is_own_file, known_plugins
from luthier.config.problems import Problem, impossible
from luthier.config.section import Section, Text
from luthier.config.words import did_you_mean

EIGHT_BITS = ("int8", "fp8")
"""Schemes whose codes a GPU can multiply."""


class QuantSection(Section):
    """Frozen linear layers in few bits, with `lora` (QLoRA). `quant: nf4` is short for `quant: {name: nf4}`. Further
    keys are the scheme's own (`luthier schema` lists them)."""

    model_config = ConfigDict(extra="allow")

    name: Text = "nf4"
    """Name of a file in `kernels/quant/`."""

    embeddings: Text | None = None
    """Store the embeddings and the head as well: the name of a scheme, such as `nf4` or `int8`, which has its own
    settings at their defaults. Absent: they stay in the model's precision."""

    products: bool = False
    """`int8` and `fp8`: products with stored weights stay in 8 bits, forward and for the gradient of the input. What
    goes in is rounded, with a scale for each token. Made for GPUs; on a CPU it is slower."""

    skip: list[Text] = Field(default_factory=list)
    """Modules that stay in the model's precision, such as `down_proj` or `model.layers.0`. The head always does unless
    `embeddings` is given."""

    @model_validator(mode="after")
    def _products_are_in_8_bits(self) -> Self:
        if self.products and self.name not in EIGHT_BITS:
            text = (
                f"quant.products is true, but quant.name: {self.name} has no products in 8 bits; leave it out, or "
                f"set quant.name to {' or '.join(EIGHT_BITS)}"
            )
            raise impossible(Problem("quant.products", text))
        return self

    @model_validator(mode="after")
    def _embeddings_are_a_scheme(self) -> Self:
        known = sorted(known_plugins()["quant"])
        if self.embeddings is not None and self.embeddings not in known and not is_own_file(self.embeddings):
            text = f'quant.embeddings is "{self.embeddings}"; known: {", ".join(known)}'
            raise impossible(Problem("quant.embeddings", text + did_you_mean(self.embeddings, known)))
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The scheme's own keys."""
        return dict(self.model_extra or {})


def tables_clash(quant: QuantSection, new_tokens: object, peft: object) -> list[Problem]:
    """Why embeddings in few bits cannot work with tokens to add, or with an adapter of peft, if there are such."""
    found = []
    told = f"quant.embeddings is {quant.embeddings}, which stores the embeddings in few bits and frozen"
    if quant.embeddings is not None and new_tokens:
        text = f"{told}, so there is no place for model.new_tokens; leave out one of the two"
        found.append(Problem("quant.embeddings", text))
    if quant.embeddings is not None and peft is not None:
        text = (
            f"{told}, and adapters of peft must see them as they are; leave it out, or use the section lora"
        )
        found.append(Problem("quant.embeddings", text))
    return found
