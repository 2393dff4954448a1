"""A module that is trained whole beside low-rank adapters (`lora.modules_to_save`)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class WholeModule(nn.Module):
    """A module whose own weights are trained, as fp32 masters, while it goes on computing in its own dtype.

    `base` holds the masters. The weights it came with are kept beside them, for `disable_adapters`; they
    are no part of the state. Attributes that are not found here are the base's; its weights are handed out
    in the dtype it computes in.
    """

    def __init__(self, base: nn.Module, masters: dict[int, nn.Parameter], only: str | None = None):
        """`masters`: by the id of the parameter they stand for; shared between modules with tied weights. `only` this
        weight is trained, such as `bias`; absent: all.
        """
        super().__init__()
        self.base = base
        self.enabled = True
        self.only = only
        self.names = [
            name for name, _ in base.named_parameters(remove_duplicate=False) if only in (None, name)
        ]
        for index, name in enumerate(self.names):
            owner, _, leaf = name.rpartition(".")
            original = base.get_parameter(name)
            if id(original) not in masters:
                wide = torch.promote_types(original.dtype, torch.float32)
                masters[id(original)] = nn.Parameter(original.detach().to(wide, copy=True))
            setattr(base.get_submodule(owner), leaf, masters[id(original)])
            self.register_buffer(f"original_{index}", original.detach(), persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        weights = self._weights()
        if all(weight is self.base.get_parameter(name) for name, weight in weights.items()):
            return self.base(*args, **kwargs)
        return functional_call(self.base, weights, args, kwargs)

    def original(self, name: str) -> Tensor:
        """The weight that the module came with."""
        return self.get_buffer(f"original_{self.names.index(name)}")

    def restore(self, rounded: dict[int, nn.Parameter]) -> nn.Module:
        """The base with its masters rounded to the dtype it came with, frozen. Call it once.

        `rounded`: by the id of the master they come from; shared, so that tied weights stay tied.
        """
        for name in self.names:
            owner, _, leaf = name.rpartition(".")
            master = self.base.get_parameter(name)
            if id(master) not in rounded:
                weight = master.detach().to(self.original(name).dtype)
                rounded[id(master)] = nn.Parameter(weight, requires_grad=False)
            setattr(self.base.get_submodule(owner), leaf, rounded[id(master)])
        return self.base

    def _weights(self) -> dict[str, Tensor]:
        if not self.enabled:
            return {name: self.original(name) for name in self.names}
        return {name: self.base.get_parameter(name).to(self.original(name).dtype) for name in self.names}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = super().__getattr__("base")
        if name in self.names:
            return self._weights()[name]
        return getattr(base, name)
