"""Which adapter of `peft` a model has. It stands in the model's own dictionary: nothing is kept outside the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.models.peft_adapters.prompt import Prompt

NAME = "default"
"""What peft calls an adapter that nobody named."""
_KEY = "luthier_peft"


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter of peft on a model, whose own modules compute with it."""

    kind: str
    """Its type, as in `peft.type`."""
    model: Any
    """peft's model around it, which knows how to save and to merge."""
    prompt: Prompt | None
    """What it lets stand before the tokens; None where it changes layers."""
    base: frozenset[int]
    """`id` of the model's own weights and buffers."""
    random: bool = False
    """Whether it draws random numbers in training."""


def hold(model: nn.Module, adapter: PeftAdapter | None) -> None:
    """Remembers the model's adapter; None: that it has none any more."""
    if adapter is None:
        vars(model).pop(_KEY, None)
    else:
        vars(model)[_KEY] = adapter


def peft_of(model: nn.Module) -> PeftAdapter | None:
    """The model's adapter of peft, if it has one."""
    return vars(model).get(_KEY)


def is_of_peft(module: nn.Module) -> bool:
    """Whether the module is one of peft's own, which computes more than the weights in it say."""
    return type(module).__module__.partition(".")[0] == "peft"


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything on the model that is the adapter's, or trained with it: by name, shared tensors once."""
    adapter = peft_of(model)
    assert adapter is not None, "the model has an adapter of peft"
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        name: tensor.detach()
        for name, tensor in named
        if tensor.requires_grad or id(tensor) not in adapter.base
    }


@contextmanager
def without_peft(model: nn.Module) -> Iterator[None]:
    """Within it the model computes what it did before it was adapted. What was trained of its own weights stays."""
    adapter = peft_of(model)
    if adapter is None:
        yield
    elif adapter.prompt is not None:
        before = adapter.prompt.enabled
        adapter.prompt.enabled = False
        try:
            yield
        finally:
            adapter.prompt.enabled = before
    else:
        with adapter.model.disable_adapter():
            yield


@contextmanager
def noticeable_peft(model: nn.Module) -> Iterator[None]:
    """While it holds, a new adapter of peft, which starts as no change at all, changes something."""
    trained = [p for p in model.parameters() if p.requires_grad] if peft_of(model) is not None else []
    before = [parameter.detach().clone() for parameter in trained]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in trained:
                noise = torch.randn(parameter.shape, generator=generator).mul_(0.02)
                parameter.add_(noise.to(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, before, strict=True):
                parameter.copy_(value)
