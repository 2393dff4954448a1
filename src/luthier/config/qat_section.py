"""The section that says for which few bits a model is trained."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from luthier.config.lora_section import LoraSection
from luthier.config.problems import Problem
from luthier.config.quant_section import QuantSection
from luthier.config.section import Section, Text


class QatSection(Section):
    """Training for weights that will be stored in few bits (QAT): linear layers compute as if they were already. `qat:
    q4_0` is short for `qat: {name: q4_0}`. Further keys are the scheme's own (`luthier schema` lists them)."""

    model_config = ConfigDict(extra="allow")

    name: Text = "q4_0"
    """Name of a file in `kernels/quant/`: what the trained weights will be stored as."""

    inputs: Literal["int8", "q8_0"] | None = None
    """Round what goes into these layers too: `int8`, a scale and a zero point for each token; `q8_0`, a scale for 32
    numbers, as llama.cpp does on CPUs. Absent: not."""

    skip: list[Text] = Field(default_factory=list)
    """Modules that stay exact, such as `down_proj` or `model.layers.0`. The head and embeddings always do."""

    @property
    def options(self) -> dict[str, Any]:
        """The scheme's own keys."""
        return dict(self.model_extra or {})


def qat_clashes(
    qat: QatSection,
    lora: LoraSection | None,
    quant: QuantSection | None,
    *,
    compiled: bool,
    products: str | None,
) -> list[Problem]:
    """Why the section cannot work beside these."""
    found = []
    if quant is not None:
        text = (
            f"qat.name is {qat.name}, which rounds weight and adapter together, but quant.name: {quant.name} stores "
            "the weight in few bits by itself; leave out one of the sections"
        )
        found.append(Problem("qat", text))
    if lora is not None and lora.dropout:
        text = (
            f"lora.dropout is {lora.dropout:g}, but with qat an adapter is rounded as part of its weight, so it has no "
            "inputs of its own to drop; set it to 0"
        )
        found.append(Problem("lora.dropout", text))
    if lora is not None and lora.dora:
        text = "lora.dora is true, but with qat there are no trained lengths; set it to false"
        found.append(Problem("lora.dora", text))
    besides = {} if lora is None else {"adapters": bool(lora.adapters), "bias": lora.bias != "none"}
    for key in (key for key, given in besides.items() if given):
        text = f"lora.{key} is given, but with qat a weight is rounded together with one update alone; leave it out"
        found.append(Problem(f"lora.{key}", text))
    if products is not None:
        text = f"model.products is {products}, but with qat products see weights in few bits; leave one of them out"
        found.append(Problem("model.products", text))
    if compiled:
        text = "model.compile is true, but rounded layers (qat) are not made for it; set it to false"
        found.append(Problem("model.compile", text))
    return found
