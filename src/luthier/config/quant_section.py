"""The section that says how frozen weights are stored."""

from typing import Any

from pydantic import ConfigDict, Field

from luthier.config.section import Section, Text


class QuantSection(Section):
    """Frozen linear layers in few bits, with `lora` (QLoRA). `quant: nf4` is short for `quant: {name: nf4}`. Further
    keys are the scheme's own (`luthier schema` lists them)."""

    model_config = ConfigDict(extra="allow")

    name: Text = "nf4"
    """Name of a file in `kernels/quant/`."""

    skip: list[Text] = Field(default_factory=list)
    """Modules that stay in the model's precision, such as `down_proj` or `model.layers.0`. The head always does."""

    @property
    def options(self) -> dict[str, Any]:
        """The scheme's own keys."""
        return dict(self.model_extra or {})
