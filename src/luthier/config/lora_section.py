"""The section `lora`: which low-rank adapters are put where, and how they start."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from luthier.config.problems import Problem, impossible
from luthier.config.section import Positive, Section, Text
from luthier.config.words import did_you_mean

LAYERS = r"(\d+)-(\d*)|last (\d+)"
"""How a range of layers is written: `8-15`, `8-` or `last 4`."""

WITH_START = {"start", "train", "train_a", "plus_ratio", "adapters"}
"""Keys that may be given for an adapter that there is."""


class LowRankSection(Section):
    """What every adapter has."""

    rank: Positive = 16
    """Rank r of the update B·A."""

    alpha: Annotated[float, Field(gt=0)] | None = None
    """The update is scaled by alpha / r (by alpha / sqrt(r) with `rslora`). Absent: twice the rank."""

    ranks: dict[str, Positive] = Field(default_factory=dict)
    """Ranks of single modules, by name or regular expression at the end of a full name (`{down_proj: 64}`). The first
    that fits holds."""

    alphas: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Alphas of single modules, named likewise."""

    rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski, 2023, arXiv:2312.03732)."""

    target: Text | Annotated[list[Text], Field(min_length=1)] = "all"
    """`all` linear layers but the head, a list of module names, or one regular expression for full names. The head and
    the input embeddings are adapted where they are named."""

    layers: Text | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Only these decoder layers, counted from 0: `8-15`, `8-`, `last 4`, or a list. Absent: all."""

    init: Text = "kaiming"
    """How A and B start: the name of a file in `models/lora_init/`. The model computes the same before the first step
    with each of them."""

    train_a: bool = True
    """false: A stays what it starts as, which saves its gradients and optimizer states (LoRA-FA; Zhang et al., 2023,
    arXiv:2308.03303)."""

    start: Text | None = None
    """Takes an adapter that there is: a folder in PEFT's format, or a run. Its rank and other settings hold."""


class AdapterSection(LowRankSection):
    """One adapter among several (`lora.adapters`)."""

    train: bool = True
    """false: the adapter stays as it is, and is added to what the layers compute."""


class RestartSection(Section):
    """Restarts (ReLoRA; Lialin et al., 2023, arXiv:2307.05695): what was learned so far becomes a frozen part of the
    model, and A, B, the optimizer's states and the learning rate begin anew. The whole change has as many times the
    rank."""

    times: Positive = 3
    """How often; each takes room for `rank` more columns from the start."""

    every: Positive | None = None
    """Steps between two of them. Absent: the run is cut into equal parts."""

    warmup: Annotated[int, Field(ge=0)] = 10
    """Steps in which the learning rate rises again to where its schedule is."""


class LoraSection(LowRankSection):
    """Low-rank adapters (Hu et al., 2021, arXiv:2106.09685). Without this section all weights are tuned."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that are dropped in training."""

    modules_to_save: list[Text] = Field(default_factory=list)
    """Modules trained whole and kept in the adapter, such as `embed_tokens`, `lm_head`."""

    bias: Literal["none", "lora_only", "all"] = "none"
    """Biases that are trained besides: none, those of adapted layers, or all of the model."""

    experts: bool = False
    """Adapters on the stacked experts of a mixture, too; `ranks` and `alphas` name their tensors (`gate_up_proj`)."""

    eva_rho: Annotated[float, Field(ge=1)] = 1.0
    """With `init: eva`: ranks move to the layers whose inputs need more directions, up to this many times the rank
    (Paischer et al., 2024, arXiv:2410.07170, which has 2). Their sum stays."""

    dora: bool = False
    """Trains the length of each output's weights apart from their direction (DoRA; Liu et al., 2024, arXiv:2402.09353).
    """

    plus_ratio: Annotated[float, Field(gt=0)] | None = None
    """The learning rate of B is this many times that of A (LoRA+; Hayou et al., 2024, arXiv:2402.12354, which has 16).
    Absent: the same."""

    start: Text | None = None
    """Goes on with an adapter: a folder in PEFT's format, or a run. Its rank, modules and other settings hold."""

    restart: RestartSection | None = None
    """Restarts with all that was learned kept (ReLoRA). Absent: none."""

    adapters: dict[str, AdapterSection] = Field(default_factory=dict)
    """Further adapters by name, added to what this one computes: trained with it, or kept as they are. Each is saved in
    a folder of its name beside this one."""

    @model_validator(mode="after")
    def _patterns_are_expressions(self) -> Self:
        given: list[tuple[str, str]] = []
        for place, one in self.each():
            given += [(f"{place}.target", one.target)] if isinstance(one.target, str) else []
            given += [(f"{place}.{key}", name) for key in ("ranks", "alphas") for name in getattr(one, key)]
        for key, pattern in given:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                text = f'{key} is "{pattern}", which is no regular expression: {error}'
                if not key.endswith(".target"):
                    text = f'{key} names "{pattern}", which is no regular expression: {error}'
                raise impossible(Problem(key, text)) from None
        return self

    @model_validator(mode="after")
    def _layers_are_a_range(self) -> Self:
        for place, one in self.each():
            if isinstance(one.layers, str) and not re.fullmatch(LAYERS, one.layers):
                text = f'{place}.layers is "{one.layers}"; write a range (8-15 or 8-), last 4, or a list of numbers'
                raise impossible(Problem(f"{place}.layers", text))
        return self

    @model_validator(mode="after")
    def _start_says_the_rest(self) -> Self:
        for place, one in self.each():
            fields = type(one).model_fields
            for key in sorted(fields.keys() - WITH_START) if one.start is not None else ():
                if getattr(one, key) != fields[key].get_default(call_default_factory=True):
                    text = f"{place}.{key} is given, but {place}.start names an adapter that has its own"
                    raise impossible(Problem(f"{place}.{key}", f"{text}; remove one of them"))
        return self

    @model_validator(mode="after")
    def _init_is_known(self) -> Self:
        for place, one in self.each():
            if one.init not in (known := known_inits()):
                text = (
                    f'{place}.init is "{one.init}"; known: {", ".join(known)}{did_you_mean(one.init, known)}'
                )
                raise impossible(Problem(f"{place}.init", text))
        return self

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if key_text := self._disagreement():
            raise impossible(Problem(*key_text))
        return self

    def each(self) -> list[tuple[str, LowRankSection]]:
        """This adapter and the further ones, with the key of each."""
        return [("lora", self), *((f"lora.adapters.{name}", one) for name, one in self.adapters.items())]

    def _disagreement(self) -> tuple[str, str] | None:
        """The first key that cannot be beside another one, and why."""
        if odd := [name for name in self.adapters if not re.fullmatch("[A-Za-z0-9_-]+", name)]:
            text = f'lora.adapters has one called "{odd[0]}", and its name is that of a folder: letters, digits, _, -'
            return "lora.adapters", text
        if self.eva_rho > 1 and self.init != "eva":
            return (
                "lora.eva_rho",
                f"lora.eva_rho moves the ranks of lora.init: eva, and lora.init is {self.init}",
            )
        besides = {"dora": self.dora, "bias": self.bias != "none", "restart": self.restart is not None}
        if self.adapters and (found := [key for key, given in besides.items() if given]):
            text = f"lora.{found[0]} is given, which works with one adapter only; remove it, or lora.adapters"
            return f"lora.{found[0]}", text
        if self.restart is not None:
            needs = {
                "dora": self.dora,
                "experts": self.experts,
                "init": self.init not in ("kaiming", "gaussian"),
            }
            if found := [key for key, given in needs.items() if given]:
                text = (
                    f"lora.{found[0]} is given, and lora.restart begins adapters anew from chance (kaiming, gaussian) "
                    "on linear layers; remove one of them"
                )
                return f"lora.{found[0]}", text
        given = {"dora": self.dora, "dropout": self.dropout > 0, "init": self.init != "kaiming"}
        if self.experts and (found := [key for key, there in given.items() if there]):
            text = f"lora.{found[0]} is given, which adapters on stacked experts cannot have"
            return f"lora.{found[0]}", f"{text}; remove it, or lora.experts"
        return None


def known_inits() -> list[str]:
    """The names of the files in `models/lora_init/`, found without importing them."""
    folder = Path(__file__).resolve().parent.parent / "models" / "lora_init"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "base" and path.stem[0] != "_")


def nothing_lost(lora: LoraSection) -> str:
    """Why adapters cannot start from what weights lost when they were stored in few bits, where none are; or ""."""
    if lora.init != "loftq":
        return ""
    return (
        "lora.init is loftq, which starts from what weights lost when they were stored in few bits, but none are; add "
        "the section quant (`quant: nf4`), or choose another lora.init"
    )


def no_restarts(train: Any) -> str:
    """Why the section `train` cannot have restarts; empty if it can."""
    for key in ("average", "max_tokens"):
        if getattr(train, key) is not None:
            why = (
                "a mean of weights from before and after is of no model"
                if key == "average"
                else "restarts are at steps"
            )
            return f"lora.restart is given with train.{key}, but {why}; remove one of them"
    return ""
