"""Puts the embeddings and the output head of a model into few bits (`quant.embeddings`), and finds them again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from luthier.allocator import give_back
from luthier.errors import ModelError
from luthier.kernels.quant.base import Scheme, store
from luthier.models.lora_targets import input_embeddings, inside, named, output_embeddings
from luthier.models.quantised.embeddings import StoredEmbedding, StoredHead
from luthier.models.quantised.weight import StoredWeight
from luthier.models.swap import put

KEY = "quant.embeddings"


def table_names(model: nn.Module, stays: Sequence[str]) -> list[str]:
    """Full names of the embeddings and the head that can be stored: the embeddings first, then the head, if it has one.

    Args:
        stays: modules that stay as they are, by full names or their ends. What shares its weight with one stays, too.
    """
    modules = [one for one in (input_embeddings(model), output_embeddings(model)) if one is not None]
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    kept = {path for path in paths if any(named(name, path) for name in stays)}
    held = {id(one.weight) for path in paths for one in [model.get_submodule(path)]
            if one in modules and inside(path, kept)}  # fmt: skip
    names = dict[int, str]()
    for path in paths:
        if (module := model.get_submodule(path)) in modules and id(module.weight) not in held:
            names.setdefault(id(module), path)
    return [names[id(module)] for module in modules if id(module) in names]


def check_tables(model: nn.Module, scheme: Scheme, name: str, stays: Sequence[str]) -> None:
    """Refuses what cannot be stored, from shapes alone. `name`: of the scheme.

    Raises:
        ModelError: the scheme does not fit, the model's own classes do more than a look-up or a product, or nothing is
            left to store.
    """
    names = table_names(model, stays)
    if not names:
        raise ModelError(
            f"{KEY} is {name}, but the embeddings and the head of this model all stay as they are (quant.skip, "
            f"lora.modules_to_save), or it has none. Leave {KEY} out."
        )
    for path in names:
        module: Any = model.get_submodule(path)
        if not isinstance(module, nn.Embedding) and type(module) is not nn.Linear:
            raise ModelError(
                f"{KEY} is {name}, but {path} is a {type(module).__name__}, neither an embedding nor a plain linear "
                f"layer. Name it in quant.skip, or leave {KEY} out."
            )
        num_out, num_in = module.weight.shape
        if why := scheme.why_not(num_out, num_in) or scheme.why_no_rows(num_in):
            raise ModelError(
                f"{KEY} is {name}, but {path} has rows of {num_in} weights, which cannot be decoded one by one: {why}. "
                "Choose another scheme, such as int8, or leave it out."
            )


@torch.no_grad()
def store_tables(model: nn.Module, scheme: Scheme, name: str, stays: Sequence[str]) -> None:
    """Stores embeddings and head, in place; a weight that both share is stored once.

    Raises:
        ModelError: see `check_tables`; or embeddings that do not go row by row.
    """
    check_tables(model, scheme, name, stays)
    tables: dict[int, StoredWeight] = {}
    for path in table_names(model, stays):
        module: Any = model.get_submodule(path)
        weight = module.weight
        if isinstance(module, nn.Embedding):
            _check_rows(module, path, name)
        key = id(weight)
        if key not in tables:
            tables[key] = StoredWeight(store(scheme, weight))
        # the weight itself lives on in the other module until that is stored, too
        put(model, path, _around(module, tables[key]))
        _forget_tie(model, f"{path}.weight")
        del module, weight
        give_back()


def stored_tables(model: nn.Module) -> dict[str, StoredEmbedding | StoredHead]:
    """Stored embeddings and heads by full name, in the model's order."""
    kinds = (StoredEmbedding, StoredHead)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def table_weights(model: nn.Module) -> list[StoredWeight]:
    """Their weights, each once."""
    return list({id(one.table): one.table for one in stored_tables(model).values()}.values())


def open_tables(model: nn.Module) -> None:
    """Puts plain modules with decoded weights into the places of stored ones; what shared a weight shares it again."""
    weights: dict[int, Tensor] = {}
    for name, module in stored_tables(model).items():
        plain = module.opened()
        plain.weight = weights.setdefault(id(module.table), plain.weight)
        put(model, name, plain)


def _around(module: nn.Embedding | nn.Linear, table: StoredWeight) -> StoredEmbedding | StoredHead:
    if isinstance(module, nn.Embedding):
        return StoredEmbedding(table, module)
    return StoredHead(table, module.bias)


def _check_rows(module: nn.Embedding, path: str, name: str) -> None:
    """What the module makes of a few rows must not depend on the others."""
    if type(module).forward is nn.Embedding.forward or module.weight.device.type == "meta":
        return
    few = torch.tensor([0, len(module.weight) - 1], device=module.weight.device)
    expected: Tensor = module(few)
    padding, module.padding_idx = module.padding_idx, None
    rows = {"weight": module.weight[few]}
    found: Tensor = functional_call(module, rows, (torch.arange(2, device=few.device),))
    module.padding_idx = padding
    if not torch.equal(found, expected):
        raise ModelError(
            f"{KEY} is {name}, but {path} ({type(module).__name__}) does more than look up rows, so they cannot be "
            f"decoded one by one. Leave {KEY} out."
        )


def _forget_tie(model: nn.Module, weight: str) -> None:
    """transformers keeps a record of what is tied, and would look for weights that are no longer there."""
    tied: Any = getattr(model, "all_tied_weights_keys", {})
    for target in [key for key, source in tied.items() if weight in (key, source)]:
        del tied[target]
