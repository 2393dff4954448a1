"""Adapters of `peft` that move their ranks while they train: AdaLoRA (arXiv:2303.10512).

It wants to be told of every step between the update of the weights and the forgetting of the gradients, by which it
judges what is worth its rank, and it keeps its factors orthogonal by a term of its own.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ConfigError
from luthier.models.peft_adapters.attach import FAR
from luthier.models.peft_adapters.held import NAME, PeftAdapter

_KEPT = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What AdaLoRA remembers of each weight's importance."""


def moves_ranks(adapter: PeftAdapter) -> bool:
    """Whether the adapter wants to be told of every step."""
    return adapter.kind == "adalora"


def settle_steps(adapter: PeftAdapter, total_steps: int) -> str:
    """Tells AdaLoRA how many steps the run has, if its settings do not; returns what a person should know.

    Raises:
        ConfigError: its phases leave no step in which ranks could be moved.
    """
    config = adapter.model.peft_config[NAME]
    if config.target_r >= config.init_r:
        raise ConfigError(
            f"peft.target_r is {config.target_r} and peft.init_r {config.init_r}: AdaLoRA takes ranks away until "
            "target_r is left on average, so it must be the lower one"
        )
    if config.total_step == FAR:
        config.total_step = total_steps
    if config.tinit >= config.total_step - config.tfinal:
        raise ConfigError(
            f"peft.tinit is {config.tinit} and peft.tfinal {config.tfinal}, of {config.total_step} steps in all, so "
            "there is no step between them in which AdaLoRA could move ranks. Lower them, or train longer."
        )
    first, last = config.tinit, config.total_step - config.tfinal
    return f"AdaLoRA moves ranks from step {first} to {last}, from {config.init_r} to {config.target_r} on average"


def move_ranks(adapter: PeftAdapter, step: int) -> None:
    """After the update of step `step`, counted from 1, while its gradients are still there."""
    adapter.model.base_model.update_and_allocate(step)


def orthogonality(adapter: PeftAdapter) -> Tensor | None:
    """AdaLoRA's term: λ · mean over its factors of ‖P·Pᵀ - I‖, with both factors' rows as P. None if λ is 0."""
    if not (weight := adapter.model.peft_config[NAME].orth_reg_weight):
        return None
    parts = []
    for factor_RX in _factors(adapter.model.base_model.model):
        product_RR = factor_RX @ factor_RX.T
        parts.append((product_RR - torch.eye(len(product_RR)).to(product_RR)).norm())
    return weight * torch.stack(parts).mean()


def _factors(model: nn.Module) -> Iterator[Tensor]:
    """Every factor A [R, K], and B turned to [R, M]."""
    for name, parameter in model.named_parameters():
        if name.endswith(f"lora_A.{NAME}"):
            yield parameter
        elif name.endswith(f"lora_B.{NAME}"):
            yield parameter.T


def rank_state(adapter: PeftAdapter) -> dict[str, Any]:
    """What a checkpoint must hold besides the adapter's tensors."""
    config = adapter.model.peft_config[NAME]
    allocator = getattr(adapter.model.base_model, "rankallocator", None)
    if allocator is None:
        return {}
    kept = {key: {name: value.cpu() for name, value in getattr(allocator, key).items()} for key in _KEPT}
    return {"pattern": config.rank_pattern, **kept}


def restore_ranks(adapter: PeftAdapter, state: dict[str, Any]) -> None:
    """Goes on from where `rank_state` was taken."""
    if not state:
        return
    allocator = adapter.model.base_model.rankallocator
    adapter.model.peft_config[NAME].rank_pattern = state["pattern"]
    device = next(adapter.model.parameters()).device
    for key in _KEPT:
        setattr(allocator, key, {name: value.to(device) for name, value in state[key].items()})
