"""Tiny policies for methods of every kind: those that write, and those with a head of another kind."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from luthier.models.head_policy import HeadPolicy
from luthier.models.lora import apply_lora
from luthier.models.policy import Policy
from luthier.models.tripwire import choose_policy
from luthier.models.value_head import CLASSES, Head, configure, draw_head, module_name
from tiny_models import tiny_llama

LABELS = ("no", "maybe", "yes")
"""Classes of rows that are made up."""


def with_head(
    head: Head, make: Callable[..., PreTrainedModel] = tiny_llama, seed: int = 0
) -> PreTrainedModel:
    """A tiny model with the layers of another one and a head that says something."""
    plain = make()
    model = CLASSES[head.kind].from_config(configure(plain.config, head, 0), dtype=torch.float32)
    model.base_model.load_state_dict(plain.base_model.state_dict())
    if name := module_name(model):
        draw_head(model, seed)
        with torch.no_grad():
            model.get_submodule(name).weight.mul_(5)  # pyright: ignore[reportCallIssue]
    return model.eval()


def tiny_policy(
    head: Head | None, model: PreTrainedModel | None = None, lora: bool = True, dropout: float = 0.0
) -> Policy:
    """The policy that a run of a method with this head would have, on a tiny model."""
    make: Any = partial(HeadPolicy, kind=head) if head else Policy
    policy = choose_policy(model or (with_head(head) if head else tiny_llama()), make=make).policy
    if lora:
        saved = [name] if head and (name := module_name(policy.model)) else []
        generator = torch.Generator().manual_seed(1)
        apply_lora(policy.model, rank=4, dropout=dropout, modules_to_save=saved, generator=generator)
    return policy
