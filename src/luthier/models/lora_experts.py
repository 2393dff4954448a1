"""Stacked experts, one tensor for all of them, with a low-rank update for each.

    W_e + s · B_e·A_e        for every expert e

The sum is made for each pass, in the dtype of W and rounded as merging it would be, so that the experts' own forward
runs as it is.

Shape suffixes: E experts, K inputs, M outputs, R rank.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from luthier.models.lora_weight import add_update, lora_scale


class LoraExperts(nn.Module):
    """Frozen experts and the updates of some of their stacked tensors.

    `lora_A` [E, R, K] and `lora_B` [E, M, R] by the name of the tensor, fp32 masters; `settings` has rank and alpha of
    each. Attributes that are not found here are the base's.
    """

    def __init__(self, base: nn.Module, settings: Mapping[str, tuple[int, float]], rslora: bool = False):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.settings, self.rslora = dict(settings), rslora
        self.dropout, self.dora, self.name = 0.0, False, ""
        self.transposed = bool(getattr(base, "is_transposed", False))
        self.enabled = True
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        for name, (rank, _) in settings.items():
            weight = base.get_parameter(name)
            experts, outputs, inputs = shape_of(base, name)
            wide = torch.promote_types(weight.dtype, torch.float32)
            self.lora_A[name] = torch.zeros(experts, rank, inputs, dtype=wide, device=weight.device)
            self.lora_B[name] = torch.zeros(experts, outputs, rank, dtype=wide, device=weight.device)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        shapes: Mapping[str, tuple[int, float]],
        rslora: bool,
        generator: torch.Generator | None,
    ) -> "dict[str, LoraExperts]":
        """New adapters for tensors by full name: A uniform in ±1/√K, B zero. By the full name of the experts."""
        found: dict[str, dict[str, tuple[int, float]]] = {}
        for path, setting in shapes.items():
            owner, _, leaf = path.rpartition(".")
            found.setdefault(owner, {})[leaf] = setting
        made: dict[str, LoraExperts] = {
            owner: cls(model.get_submodule(owner), own, rslora) for owner, own in found.items()
        }
        for adapter in made.values():
            with torch.no_grad():
                for a_ERK in adapter.lora_A.values():
                    drawn = torch.rand(a_ERK.shape, generator=generator) * 2 - 1
                    a_ERK.copy_(drawn / math.sqrt(a_ERK.shape[-1]))
        return made

    def scale(self, name: str) -> float:
        """Factor on the update of a tensor."""
        return lora_scale(*self.settings[name], self.rslora)

    def updated(self, name: str) -> Tensor:
        """A tensor in effect; differentiable."""
        return add_update(self.base.get_parameter(name), self.delta(name))

    def delta(self, name: str) -> Tensor:
        """s · B_e·A_e for all experts, in the tensor's own layout."""
        delta_EMK = torch.bmm(self.lora_B[name], self.lora_A[name]) * self.scale(name)
        return delta_EMK.transpose(1, 2) if self.transposed else delta_EMK

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:
            return self.base(*args, **kwargs)
        return functional_call(self.base, {name: self.updated(name) for name in self.settings}, args, kwargs)

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Makes the updates part of the base's tensors, rounded once, and returns the base."""
        for name in self.settings:
            self.base.get_parameter(name).copy_(self.updated(name))
        return self.base

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}: rank={rank}, alpha={alpha}" for name, (rank, alpha) in self.settings.items()
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def shape_of(experts: nn.Module, name: str) -> tuple[int, int, int]:
    """E, M and K of a stacked tensor, whatever its layout."""
    number, first, second = experts.get_parameter(name).shape
    return (number, second, first) if getattr(experts, "is_transposed", False) else (number, first, second)


def stacked_names(model: nn.Module) -> list[str]:
    """Full names of the tensors that hold a matrix for each of several experts, in the model's order."""
    found = []
    for path, module in model.named_modules():
        if path.rpartition(".")[2] == "experts" or hasattr(module, "num_experts"):
            weights = module.named_parameters(recurse=False)
            found += [f"{path}.{name}" for name, weight in weights if weight.dim() == 3]
    return found
