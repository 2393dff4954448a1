"""Fused layers in 16 bit are held to the rule of two: no further from the truth than twice what plain ones are.

The truth is a copy of the layer in fp32. Whole models in 16 bit differ by several per cent through rounding alone,
which would hide a gradient that is wrong by as much; one layer on given inputs differs by less than one.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.data.batch import Batch
from luthier.models.fused.fuse import Fusion
from luthier.models.fused.layer import FusedLayer
from luthier.models.policy import Policy

FACTOR = 2.0
"""How often the plain layer's error is allowed."""
SLACK = 4
"""And how many units of rounding, of the number's own size: in few numbers errors are a matter of luck."""


@dataclass(frozen=True)
class _Call:
    """What a layer was called with."""

    hidden: Tensor
    others: tuple[Any, ...]
    named: dict[str, Any]


def layer_fault(policy: Policy, fusion: Fusion, batch: Batch) -> str | None:
    """How a fused layer in 16 bit is further from the truth than it may be; None if none is.

    Of layers that are alike the first is looked at; fp32 layers and those with a feed-forward half of their own,
    whose choice of experts turns on the last digit, are not. Takes the memory of one layer in fp32 for a moment.
    """
    looked_at = list(_unlike(fusion.layers))
    calls = _calls(policy, looked_at, batch) if looked_at else {}
    for fused in looked_at:
        if fault := _compare(fused, calls[id(fused)]):
            return fault
    return None


def _unlike(layers: tuple[FusedLayer, ...]) -> Iterator[FusedLayer]:
    """The first of each kind."""
    seen = []
    for fused in layers:
        trained = [name for name, p in fused.layer.named_parameters() if p.requires_grad]
        kind = (type(fused.layer), fused.described, trained)
        if fused.mlp is not None and fused.dtype.itemsize == 2 and kind not in seen:
            seen.append(kind)
            yield fused


def _calls(policy: Policy, layers: list[FusedLayer], batch: Batch) -> dict[int, _Call]:
    found: dict[int, _Call] = {}

    def catcher(fused: FusedLayer) -> Callable[..., None]:
        def catch(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            named = dict(named)
            hidden, *others = given if given else (named.pop("hidden_states"),)
            found[id(fused)] = _Call(hidden.detach(), tuple(others), named)

        return catch

    with ExitStack() as hooks, torch.no_grad():
        for fused in layers:
            handle = fused.layer.register_forward_pre_hook(catcher(fused), with_kwargs=True)
            hooks.callback(handle.remove)
        policy.sketch(batch)
    return found


def _compare(fused: FusedLayer, call: _Call) -> str | None:
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(call.hidden.shape, generator=generator).to(call.hidden)
    mine = _numbers(fused, fused.layer, call, grad)
    theirs = _numbers(fused.plain, fused.layer, call, grad)
    exact = _in_fp32(fused)
    truth = _numbers(exact, exact, _widened(call), grad.float())
    for name, right in truth.items():
        error, plain = (float((made[name].float() - right).norm()) for made in (mine, theirs))
        limit = FACTOR * plain + SLACK * torch.finfo(fused.dtype).eps * float(right.norm())
        if not error <= limit:
            size = float(right.norm())
            return f"{name} in a layer is off by {error / size:.1e} of what fp32 gives (limit {limit / size:.1e})"
    return None


def _numbers(forward: Callable[..., Any], layer: nn.Module, call: _Call, grad: Tensor) -> dict[str, Tensor]:
    """The layer's output and the gradients of its input and of everything trained."""
    hidden = call.hidden.clone().requires_grad_()
    trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        made = forward(hidden, *call.others, **call.named)
        out = made if isinstance(made, Tensor) else made[0]
        found = torch.autograd.grad(out, [hidden, *trained.values()], grad, allow_unused=True)
    names = ["the input's gradient", *(f"the gradient of {name}" for name in trained)]
    gradients = {name: g for name, g in zip(names, found, strict=True) if g is not None}
    return {"the output": out.detach(), **gradients}


def _in_fp32(fused: FusedLayer) -> nn.Module:
    """A copy of the layer with its own forward."""
    forward = vars(fused.layer).pop("forward")
    try:
        return copy.deepcopy(fused.layer).float()
    finally:
        fused.layer.forward = forward


def _widened(value: Any) -> Any:
    """The same in fp32, wherever there are 16-bit tensors."""
    if isinstance(value, _Call):
        return _Call(_widened(value.hidden), _widened(value.others), _widened(value.named))
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(map(_widened, value))
    if isinstance(value, dict):
        return {name: _widened(one) for name, one in value.items()}
    return value
