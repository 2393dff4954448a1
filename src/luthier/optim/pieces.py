"""What an optimizer works on: weights with their gradients and states, one after another or end to end."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class About:
    """What an optimizer may know of a weight besides its shape."""

    name: str = ""
    """Its name in the model."""
    number: int = 0
    """Its place among all that is trained, the same on every rank and after a resume: a seed."""
    table: bool = False
    """Whether it is a table with a row for each token: embeddings, or the head."""
    head_rows: int = 0
    """Rows of one attention head, of a query or key projection; 0 for all others."""

    @property
    def adapter(self) -> bool:
        """Whether it is the A or B of a LoRA."""
        return self.name.rpartition(".")[2].startswith("lora_") or ".lora_" in self.name


@dataclass(frozen=True)
class Piece:
    """A weight, or for an elementwise optimizer many of them end to end as one vector."""

    weight: Tensor
    """fp32 (fp64 for fp64), to be changed in place: the weight itself, or the master that it follows."""
    gradient: Tensor
    """Of the same dtype, shape and device. An optimizer leaves it as it is."""
    state: dict[str, Tensor]
    """What the algorithm's `start` made, by name, and what earlier updates have put there."""
    step: Tensor
    """How many updates it has had, this one included, a scalar in fp32."""
    about: About = About()
    """What else is known of it; nothing of many weights end to end."""


def hidden_matrix(parameter: nn.Parameter, about: About, *, adapters: bool = False) -> bool:
    """Whether a weight is a matrix between layers: no table, no stack, and no adapter unless these count, too."""
    return parameter.dim() == 2 and not about.table and (adapters or not about.adapter)


def is_scalar(name: str, value: Tensor, parameter: nn.Parameter) -> bool:
    """Whether a state is one number for a whole weight, such as the count of steps."""
    return name == "step" or (value.dim() == 0 and parameter.dim() > 0)
