"""The decoder layers of a model one after another, each with what it reads on rows of data.

What a layer reads is what the layers before it make of the rows as they are by then, so rounding one is seen by all
that follow. Each row goes through twice: to look at a layer's inputs, and through the layer as it was left. What layers
are given besides hidden states (masks, positions) is found beforehand, with stand-ins that compute nothing.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.errors import ModelError
from luthier.models.regional import decoder_layers
from luthier.models.swap import put

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Call:
    """What a layer is given with one row besides its hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """A decoder layer and what it reads."""

    name: str
    module: nn.Module
    hidden: Sequence[Tensor]
    """Its inputs, [1, T, D] for each row."""
    calls: Sequence[Call]

    def outputs(self) -> list[Tensor]:
        """What it makes of each row."""
        return [self._run(hidden, call) for hidden, call in zip(self.hidden, self.calls, strict=True)]

    def _run(self, hidden: Tensor, call: Call) -> Tensor:
        made = self.module(hidden, *call.args, **call.kwargs)
        return made[0] if isinstance(made, tuple) else made

    def watch(self, names: Sequence[str], see: Callable[[str, Tensor], None]) -> None:
        """Runs the layer on all rows and calls `see` with the name of each of these modules in it and what it reads."""
        hooks = [
            self.module.get_submodule(name).register_forward_pre_hook(_telling(see, name)) for name in names
        ]
        try:
            self.outputs()
        finally:
            for hook in hooks:
                hook.remove()


def _telling(see: Callable[[str, Tensor], None], name: str) -> Callable[[nn.Module, Any], None]:
    return lambda module, given: see(name, given[0])


def linear_inside(layer: Layer, linear: Collection[str]) -> list[str]:
    """Those of the linear layers that are in a decoder layer, by their paths in it."""
    inside = f"{layer.name}."
    return [name.removeprefix(inside) for name in sorted(linear) if name.startswith(inside)]


@torch.no_grad()
def layers_on(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], progress: Progress | None = None
) -> Iterator[Layer]:
    """Each decoder layer, to be changed in place before the next is asked for.

    Raises ModelError where hidden states do not simply go from layer to layer.
    """
    modules = list(decoder_layers(model))
    if not modules:
        raise ModelError(
            "this model keeps no list of its decoder layers, so they cannot be rounded with data."
        )
    names = {id(module): name for name, module in model.named_modules()}
    hidden, calls = _first_pass(model, [names[id(module)] for module in modules], rows)
    for number, module in enumerate(modules):
        layer = Layer(names[id(module)], module, hidden, [found[number] for found in calls])
        yield layer
        if number + 1 < len(modules):
            hidden = layer.outputs()
        if progress is not None:
            progress(number + 1, len(modules), layer.name)


class _StandIn(nn.Module):
    """Takes the place of a layer, keeps what it is given, and gives back the hidden states themselves."""

    def __init__(self, layer: nn.Module, given: list[tuple[Any, Call]]):
        super().__init__()
        self._layer = (layer,)  # not as a module of this one
        self._given = given

    def __getattr__(self, name: str) -> Any:
        """What models ask of their layers, such as the kind of attention."""
        return getattr(self.__dict__["_layer"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else None
        self._given.append((hidden, Call(args[1:], kwargs)))
        return hidden


def _first_pass(
    model: PreTrainedModel, names: Sequence[str], rows: Sequence[Sequence[int]]
) -> tuple[list[Tensor], list[list[Call]]]:
    """What the first layer reads of each row, and for each row what every layer is given besides."""
    given: list[tuple[Any, Call]] = []
    layers = [model.get_submodule(name) for name in names]
    hidden: list[Tensor] = []
    calls: list[list[Call]] = []
    try:
        for name, layer in zip(names, layers, strict=True):
            put(model, name, _StandIn(layer, given))
        for row in rows:
            given.clear()
            model.base_model(input_ids=torch.tensor([list(row)]), use_cache=False)
            first = given[0][0] if given else None
            if len(given) != len(names) or first is None or any(one is not first for one, _ in given):
                raise ModelError(
                    f"hidden states do not simply go from one decoder layer of {type(model).__name__} to the next, so "
                    "its layers cannot be rounded one by one with data. Take compressed:int4, which needs none."
                )
            hidden.append(first)
            calls.append([call for _, call in given])
    finally:
        for name, layer in zip(names, layers, strict=True):
            put(model, name, layer)
    return hidden, calls
