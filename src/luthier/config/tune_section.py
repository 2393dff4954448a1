"""The section that says which of a model's own weights are tuned."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from luthier.config.forms import OneOrMany
from luthier.config.section import Section, Text


class TuneSection(Section):
    """Which of the model's own weights are tuned; all others stay as they are, without gradients and optimizer states.
    `tune: lisa` is short for `tune: {name: lisa}`. Further keys are the way's own (`luthier schema` lists them)."""

    model_config = ConfigDict(extra="allow")

    name: Text = "weights"
    """How they are chosen: the name of a file in `models/tuning/`."""

    train: Annotated[list[Text], OneOrMany()] = Field(default_factory=list)
    """Weights to tune besides, by name: a part of it (`layers.3`, `mlp`, `bias`), a pattern (`*.layers.*.q_proj.*`) or,
    with ^ before it, a regular expression. With `weights` and without `layers`, these alone."""

    freeze: Annotated[list[Text], OneOrMany()] = Field(default_factory=list)
    """Weights that stay as they are, named likewise, whatever else chooses them."""

    embeddings: bool | None = None
    """Whether the embeddings are tuned. Absent: as the way chooses. Of one tensor with the head, both words mean it."""

    head: bool | None = None
    """Whether the layer that makes logits is tuned. Absent: as the way chooses."""

    norms: bool | None = None
    """Whether all norms are tuned. Absent: as the way chooses."""

    @property
    def options(self) -> dict[str, Any]:
        """The way's own keys."""
        return dict(self.model_extra or {})
