"""The section `reference`: what a method that needs one compares the model with."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from luthier.config.problems import Problem, impossible
from luthier.config.section import Positive, Section, Text


class ReferenceSection(Section):
    """What DPO, KTO and others compare the model with. `reference: NAME` is short for `reference: {name: NAME}`."""

    name: Text | None = None
    """Another model with the same tokens, named like `model.name`. Absent: the model as it is when training begins."""

    revision: Text | None = None
    """Commit, branch or tag of a hub id."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the other model. `auto`: that of the model that is trained."""

    precompute: bool | None = None
    """Compute once what the reference says of the rows, keep it on disk, and take it from there in every step.
    Absent: where rows are seen more than once."""

    sync_every: Positive | None = None
    """Steps after which the reference moves to where the model is (TR-DPO, arXiv:2404.09656), such as 512. Absent:
    it never moves."""

    sync_alpha: Annotated[float, Field(gt=0, le=1)] | None = None
    """How far it moves: reference = alpha * model + (1 - alpha) * reference. Absent: 0.6, and 1 with `lora`."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        problems = []
        if self.precompute and self.sync_every:
            text = (
                "reference.precompute keeps what the reference says of each row, and reference.sync_every changes the "
                "reference while training, so what was kept would be out of date; leave one of them out"
            )
            problems.append(Problem("reference.precompute", text))
        if self.name and self.sync_every:
            text = (
                "reference.name compares with another model, and reference.sync_every moves the reference towards "
                "the model that is trained; leave one of them out"
            )
            problems.append(Problem("reference.sync_every", text))
        if self.sync_alpha is not None and not self.sync_every:
            text = (
                "reference.sync_alpha says how far the reference moves, but nothing says when; "
                "set reference.sync_every"
            )
            problems.append(Problem("reference.sync_alpha", text))
        for key in ("revision", "dtype"):
            if not self.name and getattr(self, key) not in (None, "auto"):
                text = f"reference.{key} is about another model, and none is named; set reference.name"
                problems.append(Problem(f"reference.{key}", text))
        if problems:
            raise impossible(*problems)
        return self
