"""Weights that others stored, handed to transformers as if they were plain ones, so that it names and places them.

In the list of tensors a stand-in takes the place of each stored weight. Where a linear layer waits for the weight, what
is read of it is only its number, as the shape of an empty tensor, and the layer that takes its place gets the parts.
Everywhere else (embeddings, the head, experts that are stacked) the decoded weight is read.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.kernels.quant.base import Stored
from luthier.models.checkpoint_names import checkpoint_names
from luthier.models.lora_targets import output_embeddings
from luthier.models.quantised.packed import PackedModel


class Source(Protocol):
    """Which weights of a model become stored ones, and how."""

    fault: ModelError | None
    """What went wrong with one of them."""

    def names(self, model: nn.Module) -> set[str]:
        """Full names of the linear layers in the model, which has no weights yet."""
        ...

    def stored(self, value: Tensor) -> Stored:
        """The stored weight, from what was read for it."""
        ...

    def nothing(self) -> str:
        """What to say if there is no such layer."""
        ...


class AsTheyAre:
    """Weights in the format of their files."""

    fault: ModelError | None = None

    def __init__(self, packed: PackedModel, dtype: torch.dtype):
        self.packed, self.dtype = packed, dtype
        self.order = list(packed.weights)
        self.kept: set[str] = set()
        """Modules, by their names on disk, whose weights stay in few bits."""

    def names(self, model: nn.Module) -> set[str]:
        on_disk = checkpoint_names(model, [f"{name}.weight" for name in self.order])
        head, found = output_embeddings(model), set()
        for weight, source in on_disk.items():
            name = weight.removesuffix(".weight")
            try:
                module = model.get_submodule(name)
            except AttributeError:
                continue
            if type(module) is nn.Linear and module is not head:
                found.add(name)
                self.kept.add(source.removesuffix(".weight"))
        return found

    def stored(self, value: Tensor) -> Stored:
        return self.packed.stored(self.order[value.shape[1]], self.dtype)

    def nothing(self) -> str:
        return (
            f"the model is stored as {self.packed.format.about}, but none of its stored weights is that of a plain "
            "linear layer. Set model.unpack: true to decode them all."
        )


class _StandIn:
    """A stored weight under the name of a plain one; `[...]` reads it, as transformers asks for it."""

    def __init__(self, name: str, number: int, source: AsTheyAre):
        self.name, self.number, self.source = name, number, source

    def __getitem__(self, index: Any) -> Tensor:
        if self.name in self.source.kept:
            return torch.empty(0, self.number)
        return self.source.packed.decoded(self.name, self.source.dtype)[index]


def stand_ins(source: AsTheyAre) -> dict[str, Any]:
    """All tensors of the model by their names in a plain checkpoint."""
    return {
        **source.packed.plain,
        **{f"{name}.weight": _StandIn(name, number, source) for number, name in enumerate(source.order)},
    }
