"""Weights by name, by layer and by kind: freezing, the last layers, biases alone (BitFit, arXiv:2106.10199)."""

import re
from typing import Annotated

from pydantic import Field, model_validator

from luthier.config.lora_section import LAYERS
from luthier.config.settings import settings
from luthier.errors import ConfigError
from luthier.models.lora_patterns import wanted_layers
from luthier.models.tuning._parts import Chosen, Weights
from luthier.models.tuning.base import Say, Way


@settings
class ByName(Way):
    """Some decoder layers, weights that are named, or without both all weights."""

    layers: str | list[Annotated[int, Field(ge=0)]] | None = None
    """Only these decoder layers, counted from 0: `last 4`, `8-15`, `8-`, or a list. Absent: all weights, or only those
    of `train`."""

    @model_validator(mode="after")
    def _layers_are_a_range(self) -> "ByName":
        if self.layers == [] or (isinstance(self.layers, str) and not re.fullmatch(LAYERS, self.layers)):
            raise ValueError(
                f"tune.layers is {self.layers!r}; write a range (8-15 or 8-), last 4, or a list of numbers"
            )
        return self

    def choose(self, weights: Weights, named: bool, say: Say) -> Chosen:
        """Those of the layers; without layers all, unless weights are named."""
        if self.layers is None:
            return frozenset() if named else weights.everything
        blocks = weights.layers
        wanted = wanted_layers(self.layers, len(blocks))
        if not wanted or not wanted <= set(range(len(blocks))):
            raise ConfigError(
                f"tune.layers is {self.layers}, but this model has the layers 0 to {len(blocks) - 1}. Name some of "
                "these"
            )
        return frozenset().union(*(blocks[number] for number in wanted))

    def describe(self) -> str:
        return "weights by name" if self.layers is None else f"layers {self.layers}"
