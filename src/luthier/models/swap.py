"""Modules of a model put in each other's place, and weights that were shared taken apart."""

from typing import Any

from torch import nn


def untie(model: nn.Module, name: str) -> None:
    """Gives the module its own copy of a weight that it shared, and has the model's config say so."""
    module = model.get_submodule(name)
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    module.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.tie_word_embeddings = False
    # transformers keeps a second record of what is tied; a stale one would drop the copy on saving.
    tied: Any = getattr(model, "all_tied_weights_keys", {})
    for target in [key for key, source in tied.items() if f"{name}.weight" in (key, source)]:
        del tied[target]


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` in the place of the one at `name`, in this instance only."""
    parent, _, leaf = name.rpartition(".")
    module.train(model.get_submodule(name).training)
    setattr(model.get_submodule(parent), leaf, module)
