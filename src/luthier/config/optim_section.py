"""The sections `optim` and `schedule`: how weights are updated, and how the learning rate moves."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from luthier.config.forms import OneOrMany
from luthier.config.problems import Problem, impossible
from luthier.config.section import Fraction, Positive, Section, Text


class GroupSection(Section):
    """Settings of some weights of their own."""

    match: Annotated[list[Text], Field(min_length=1), OneOrMany()]
    """Which: `embeddings`, `head`, or regular expressions found in the names of weights (`mlp`, `layers\\.0\\.`). A
    weight goes by the first group that has it."""

    lr: Annotated[float, Field(ge=0)] | None = None
    """Their peak learning rate. Absent: `optim.lr`."""

    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Their weight decay. Absent: that of all, and none of biases and norms."""

    @model_validator(mode="after")
    def _match_is_an_expression(self) -> Self:
        for pattern in self.match:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                text = f'optim.groups has a match "{pattern}", which is no regular expression: {error}'
                raise impossible(Problem("optim.groups", text)) from None
        return self


class OptimSection(Section):
    """How weights are updated. Further keys are the optimizer's own (`luthier schema` lists them)."""

    model_config = ConfigDict(extra="allow")

    name: Text = "adamw"
    """Name of a file in `optim/`, or the path of a Python file (`./mine.py`) with an optimizer of your own."""

    lr: Annotated[float, Field(ge=0)] | None = None
    """Peak learning rate. Absent: 2e-4 with `lora`, 1e-3 with `peft`, 2e-5 for all weights."""

    stochastic_rounding: bool = False
    """For bfloat16 weights, all of them trained: no fp32 masters, which saves 4 bytes a weight. Each update is rounded
    up or down by chance, so that it arrives in the mean."""

    groups: list[GroupSection] = Field(default_factory=list)
    """Weights with a learning rate or a weight decay of their own, such as `[{match: embeddings, lr: 5e-5}]`."""

    @property
    def options(self) -> dict[str, Any]:
        """The optimizer's own keys."""
        return dict(self.model_extra or {})


class ScheduleSection(Section):
    """How the learning rate moves. `schedule: cosine` is short for `schedule: {name: cosine}`."""

    name: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """constant, linear or cosine decay, or warm-up, stable, decay (wsd)."""

    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warm-up; instead of `warmup_ratio`."""

    warmup_ratio: Fraction | None = None
    """Share of all steps that is warm-up. Absent, with no `warmup_steps`: 0.03."""

    min_ratio: Fraction = 0.0
    """The learning rate ends at this share of its peak."""

    decay_steps: Positive | None = None
    """wsd only: so many steps at the end decay; instead of `decay_ratio`."""

    decay_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """wsd only: share of all steps that decays. Absent, with no `decay_steps`: 0.2."""

    decay_shape: Literal["linear", "1-sqrt"] | None = None
    """wsd only: a straight line, or 1 - sqrt(share of the decay that is done) (arXiv:2405.18392). Absent: linear."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            text = "schedule.warmup_steps and schedule.warmup_ratio are both given; keep one of them"
            raise impossible(Problem("schedule.warmup_steps", text))
        return self

    @model_validator(mode="after")
    def _one_decay(self) -> Self:
        if self.decay_steps is not None and self.decay_ratio is not None:
            text = "schedule.decay_steps and schedule.decay_ratio are both given; keep one of them"
            raise impossible(Problem("schedule.decay_steps", text))
        return self

    @model_validator(mode="after")
    def _decay_is_of_wsd(self) -> Self:
        for key in ("decay_steps", "decay_ratio", "decay_shape"):
            value = getattr(self, key)  # a saved config has the defaults too
            if self.name != "wsd" and value != type(self).model_fields[key].default:
                text = (
                    f"schedule.{key} is {value}, but schedule.name is {self.name}, which has no phase of decay; "
                    "remove it or set schedule.name: wsd"
                )
                raise impossible(Problem(f"schedule.{key}", text))
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        warmup, decay = self.warmup_ratio or 0.0, self.decay_ratio or 0.0
        if self.name == "wsd" and warmup + decay > 1.0:
            text = (
                f"schedule.warmup_ratio is {warmup:g} and schedule.decay_ratio is {decay:g}; "
                "together they are more than the whole run; lower one of them"
            )
            raise impossible(Problem("schedule.decay_ratio", text))
        return self
