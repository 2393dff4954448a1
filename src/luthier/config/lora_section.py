"""The section `lora`: which low-rank adapters are put where, and how they start."""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from luthier.config.problems import Problem, impossible
from luthier.config.section import Positive, Section, Text
from luthier.config.words import did_you_mean

LAYERS = r"(\d+)-(\d*)|last (\d+)"
"""How a range of layers is written: `8-15`, `8-` or `last 4`."""


class LoraSection(Section):
    """Low-rank adapters (Hu et al., 2021, arXiv:2106.09685). Without this section all weights are tuned."""

    rank: Positive = 16
    """Rank r of the update B·A."""

    alpha: Annotated[float, Field(gt=0)] | None = None
    """The update is scaled by alpha / r (by alpha / sqrt(r) with `rslora`). Absent: twice the rank."""

    ranks: dict[str, Positive] = Field(default_factory=dict)
    """Ranks of single modules, by name or regular expression at the end of a full name (`{down_proj: 64}`). The first
    that fits holds."""

    alphas: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Alphas of single modules, named likewise."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that are dropped in training."""

    rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski, 2023, arXiv:2312.03732)."""

    target: Text | Annotated[list[Text], Field(min_length=1)] = "all"
    """`all` linear layers but the head, a list of module names, or one regular expression for full names."""

    layers: Text | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Only these decoder layers, counted from 0: `8-15`, `8-`, `last 4`, or a list. Absent: all."""

    modules_to_save: list[Text] = Field(default_factory=list)
    """Modules trained whole and kept in the adapter, such as `embed_tokens`, `lm_head`."""

    init: Text = "kaiming"
    """How A and B start: the name of a file in `models/lora_init/`. The model computes the same before the first step
    with each of them."""

    dora: bool = False
    """Trains the length of each output's weights apart from their direction (DoRA; Liu et al., 2024, arXiv:2402.09353).
    """

    train_a: bool = True
    """false: A stays what it starts as, which saves its gradients and optimizer states (LoRA-FA; Zhang et al., 2023,
    arXiv:2308.03303)."""

    plus_ratio: Annotated[float, Field(gt=0)] | None = None
    """The learning rate of B is this many times that of A (LoRA+; Hayou et al., 2024, arXiv:2402.12354, which has 16).
    Absent: the same."""

    start: Text | None = None
    """Goes on with an adapter: a folder in PEFT's format, or a run. Its rank, modules and other settings hold."""

    @model_validator(mode="after")
    def _patterns_are_expressions(self) -> Self:
        given = [("lora.target", self.target)] if isinstance(self.target, str) else []
        given += [("lora.ranks", key) for key in self.ranks] + [("lora.alphas", key) for key in self.alphas]
        for key, pattern in given:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                text = f'{key} is "{pattern}", which is no regular expression: {error}'
                if key != "lora.target":
                    text = f'{key} names "{pattern}", which is no regular expression: {error}'
                raise impossible(Problem(key, text)) from None
        return self

    @model_validator(mode="after")
    def _layers_are_a_range(self) -> Self:
        if isinstance(self.layers, str) and not re.fullmatch(LAYERS, self.layers):
            text = f'lora.layers is "{self.layers}"; write a range (8-15 or 8-), last 4, or a list of numbers'
            raise impossible(Problem("lora.layers", text))
        return self

    @model_validator(mode="after")
    def _start_says_the_rest(self) -> Self:
        if self.start is None:
            return self
        for key in sorted(type(self).model_fields.keys() - {"start", "train_a", "plus_ratio"}):
            if getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True):
                text = f"lora.{key} is given, but lora.start names an adapter that has its own; remove one of them"
                raise impossible(Problem(f"lora.{key}", text))
        return self

    @model_validator(mode="after")
    def _init_is_known(self) -> Self:
        if self.init not in (known := known_inits()):
            text = f'lora.init is "{self.init}"; known: {", ".join(known)}{did_you_mean(self.init, known)}'
            raise impossible(Problem("lora.init", text))
        return self


def known_inits() -> list[str]:
    """The names of the files in `models/lora_init/`, found without importing them."""
    folder = Path(__file__).resolve().parent.parent / "models" / "lora_init"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "base" and path.stem[0] != "_")
