"""Several adapters on one model: further ones are put beneath the first, and the outputs of all are added up."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from luthier.errors import ModelError
from luthier.models.lora import LoraLinear, adapter_names, adapters, adapters_called
from luthier.models.lora_patterns import in_layers, settings_of
from luthier.models.lora_targets import match_targets
from luthier.models.swap import put


@contextmanager
def beside(model: nn.Module, name: str) -> Iterator[None]:
    """Within it the layers have no updates, so that another adapter can be put on; afterwards they have both.

    Raises ModelError if there is one called `name` already.
    """
    if name in adapter_names(model):
        raise ModelError(
            f"lora.adapters.{name}: the adapter in lora.start has one called so, too. Give it another name."
        )
    before = {name: one for name, one in adapters(model).items() if isinstance(one, LoraLinear)}
    for name, outer in before.items():
        put(model, name, outer.root)
    try:
        yield
    finally:
        for name, outer in before.items():
            now = model.get_submodule(name)
            if now is not outer.root:
                outer.chain[-1].base = now
            put(model, name, outer)


def add_adapter(
    model: nn.Module,
    name: str,
    *,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    rslora: bool = False,
    target: str | Sequence[str] = "all",
    generator: torch.Generator | None = None,
    ranks: Mapping[str, int] | None = None,
    alphas: Mapping[str, float] | None = None,
    layers: str | Sequence[int] | None = None,
    init: str = "kaiming",
    train_a: bool = True,
) -> list[str]:
    """Puts one more new adapter on a model that has one; see `apply_lora`. Returns the layers that it is on.

    Raises ModelError where settings do not fit the model, or its first adapter.
    """
    if any(one.dora for one in adapters_called(model, "").values()):
        raise ModelError(
            f"lora.adapters adds {name} to adapters with lengths (lora.dora), and those of a sum are not those of its "
            "parts. Leave out lora.dora, or merge the other adapter into the base first (`luthier export`)."
        )
    with beside(model, name):
        besides = list(adapters(model))
        targets = in_layers(match_targets(model, target, besides), layers)
        if found := [path for path in targets if isinstance(model.get_submodule(path), nn.Embedding)]:
            raise ModelError(
                f"lora.adapters.{name}.target means the embedding {found[0]}; only the first adapter may have it. Name "
                "it in lora.target."
            )
        made: dict[str, LoraLinear] = {}
        for path, (own_rank, own_alpha) in settings_of(
            targets, rank, alpha, ranks or {}, alphas or {}
        ).items():
            base = model.get_submodule(path)
            made[path] = LoraLinear.from_base(base, own_rank, own_alpha, dropout, rslora, generator, init)
            made[path].name = name
            made[path].lora_A.requires_grad_(train_a)
        for path, one in made.items():
            put(model, path, one)
    return list(made)
