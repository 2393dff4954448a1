"""Fused layers on one model instance: put on where they can be, checked, taken off."""

from dataclasses import dataclass, field

from torch import nn

from luthier.kernels.workspace import Workspace
from luthier.models.families._common import describers
from luthier.models.fused.layer import CannotFuse, FusedLayer
from luthier.models.lora import adapters
from luthier.models.peft_adapters.held import is_of_peft

OF_PEFT = "an adapter of the library peft is in it"


@dataclass(frozen=True)
class Fusion:
    """Which layers of a model are fused, and why others are not."""

    layers: tuple[FusedLayer, ...]
    workspace: Workspace
    reasons: dict[str, int] = field(default_factory=dict)
    """Reason -> number of layers that run plain for it."""

    def release(self) -> None:
        """Takes all of it off again."""
        for layer in self.layers:
            layer.release()
        self.workspace.clear()


def fuse(model: nn.Module) -> Fusion:
    """Lets the decoder layers of `model` that a family describes be computed by fused halves. In place.

    To be called when adapters are in place and it is settled what is trained.
    """
    described_by = describers()
    workspace = Workspace()
    pack = bool(adapters(model)) or not any(p.requires_grad for p in model.parameters())
    layers, reasons = [], {}
    for module in list(model.modules()):
        describe = described_by.get(type(module).__name__)
        if describe is None or "forward" in vars(module):
            continue
        if any(map(is_of_peft, module.modules())):
            reasons[OF_PEFT] = reasons.get(OF_PEFT, 0) + 1
            continue
        try:
            fused = FusedLayer(module, describe(module), workspace, pack=pack)
        except (CannotFuse, AttributeError) as error:  # a layer of that name without the parts of its family
            reason = str(error)
            reasons[reason] = reasons.get(reason, 0) + 1
            continue
        module.forward = fused
        layers.append(fused)
    return Fusion(tuple(layers), workspace, reasons)
