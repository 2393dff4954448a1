"""Adapters of the LoRA family on one model instance: put on, switch off, merge, take off.

A wrapper for each kind does all of it. `LoraLinear` adds a low-rank update to a linear layer, `LoraEmbedding` to an
embedding, `LoraExperts` to stacked experts; `WholeModule` trains another module's own weights (`lora.modules_to_save`,
or biases); `TokenRows` those of new tokens. All keep the module they wrap as `base`, untouched when the adapter is
switched off, and answer for it where transformers reads its attributes. Nothing is kept outside the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from luthier.errors import ModelError
from luthier.models.lora_embedding import LoraEmbedding
from luthier.models.lora_experts import LoraExperts, stacked_names
from luthier.models.lora_linear import LoraLinear
from luthier.models.lora_patterns import in_layers, settings_of
from luthier.models.lora_targets import match_saved, match_targets, owners
from luthier.models.quantised.linear import QuantLinear
from luthier.models.swap import put, untie
from luthier.models.token_rows import TokenRows, token_holders
from luthier.models.whole_module import WholeModule

Adapter = LoraLinear | LoraEmbedding | LoraExperts | WholeModule | TokenRows
LOW_RANK = (LoraLinear, LoraEmbedding, LoraExperts)


@dataclass(frozen=True)
class LoraReport:
    """What an adapter touches: the adapted and the wholly trained modules, and their share of the model."""

    targets: tuple[str, ...]
    saved: tuple[str, ...]
    num_trainable: int


def apply_lora(
    model: nn.Module,
    *,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    rslora: bool = False,
    target: str | Sequence[str] = "all",
    modules_to_save: Sequence[str] = (),
    tokens: Sequence[int] = (),
    train_tokens: bool = True,
    generator: torch.Generator | None = None,
    ranks: Mapping[str, int] | None = None,
    alphas: Mapping[str, float] | None = None,
    layers: str | Sequence[int] | None = None,
    init: str = "kaiming",
    dora: bool = False,
    train_a: bool = True,
    bias: str = "none",
    experts: bool = False,
    restarts: int = 0,
) -> LoraReport:
    """Puts new adapters on `model`, in place, and freezes all else. The model computes what it did before.

    `alpha`: twice the rank if absent. `target`: "all" (every linear layer but the head), names, or one
    regular expression for full names. `ranks` and `alphas` of single modules go before `rank` and `alpha`; only the
    decoder `layers` get any; `init` is how they start; without `train_a` A stays as it starts. `modules_to_save` are
    trained whole, and so is every module that shares their weights. The embeddings of `tokens` are part of the
    adapter, trained or not. `bias`: none, those of adapted layers (lora_only) or all are trained. With `experts`
    stacked experts get adapters, too. `restarts`: see `LoraLinear.make_room`. Raises ModelError where settings do not
    fit the model or it has adapters already; the model is then unchanged.
    """
    refuse_adapted(model)
    saved = match_saved(model, modules_to_save)
    targets = in_layers(match_targets(model, target, saved), layers)
    stacked = in_layers(stacked_names(model), layers) if experts else []
    _refuse_beside_experts(stacked, dora, dropout, init, restarts)
    _refuse_no_bias(model, bias, targets)
    shapes = settings_of([*targets, *stacked], rank, alpha, ranks or {}, alphas or {})
    holders = token_holders(model, saved, targets) if tokens else []
    made: dict[str, LoraLinear | LoraEmbedding | LoraExperts] = {}
    for name in targets:
        module, shape = model.get_submodule(name), shapes[name]
        if isinstance(module, nn.Embedding):
            _refuse_with_embedding(name, dora, restarts)
            made[name] = LoraEmbedding(module, *shape, rslora).begin(generator)
        else:
            made[name] = LoraLinear.from_base(module, *shape, dropout, rslora, generator, init, dora)
    made |= LoraExperts.of(model, {name: shapes[name] for name in stacked}, rslora, generator)
    model.requires_grad_(False)
    wrap_whole(model, saved)
    for names in holders:
        wrap_tokens(model, names, tokens).requires_grad_(train_tokens)
    if bias == "all":
        wrap_biases(model, list(made))
    for name, adapter in made.items():
        _finish(adapter, train_a, bias, restarts)
        put(model, name, adapter)
    return report(model)


def _finish(
    adapter: LoraLinear | LoraEmbedding | LoraExperts, train_a: bool, bias: str, restarts: int
) -> None:
    """What adapters get besides; A of an embedding begins at zero, so that it is trained in any case."""
    if isinstance(adapter, LoraEmbedding):
        return
    adapter.lora_A.requires_grad_(train_a)
    if isinstance(adapter, LoraLinear):
        if restarts:
            adapter.make_room(restarts)
        if bias != "none":
            adapter.train_bias()


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The adapted and wholly trained modules by full name, in the model's order. Of several adapters on one module it
    is the outermost; the others are in its `chain`."""
    inner = {
        id(one) for module in model.modules() if isinstance(module, LoraLinear) for one in module.chain[1:]
    }
    found = {name: module for name, module in model.named_modules() if isinstance(module, Adapter)}
    return {name: module for name, module in found.items() if id(module) not in inner}


def adapters_called(model: nn.Module, name: str) -> dict[str, LoraLinear]:
    """The linear layers' updates of the adapter of that name, by the full name of the layer."""
    chains = {
        path: module.chain for path, module in adapters(model).items() if isinstance(module, LoraLinear)
    }
    return {path: one for path, chain in chains.items() for one in chain if one.name == name}


def adapter_names(model: nn.Module) -> list[str]:
    """The names of all adapters on the model; the first one's is empty."""
    chains = [module.chain for module in adapters(model).values() if isinstance(module, LoraLinear)]
    return (
        list(dict.fromkeys(["", *(one.name for chain in chains for one in chain)])) if adapters(model) else []
    )


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All that adapters consist of (A, B, masters, rows of tokens) by its name in the model, each once."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, Adapter):
            continue
        for part, parameter in module.named_parameters():
            masters = module.names if isinstance(module, WholeModule) else ()
            is_frozen_base = part.startswith("base.") and part.removeprefix("base.") not in masters
            if not is_frozen_base and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{name}.{part}"] = parameter
    return found


def restarted_parts(model: nn.Module) -> list[torch.Tensor]:
    """What is no weight that is trained and changes nevertheless: what adapters had learned before they began anew."""
    every = [one for one in model.modules() if isinstance(one, LoraLinear) and one.restarts]
    return [part for one in every for part in (one.start_A, one.start_B) if part is not None]


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Within it the model computes what it did before it was adapted; afterwards all is as it was."""
    before = [(module, module.enabled) for module in model.modules() if isinstance(module, Adapter)]
    try:
        for module, _ in before:
            module.enabled = False
        yield
    finally:
        for module, enabled in before:
            module.enabled = enabled


def merge_adapters(model: nn.Module) -> None:
    """Makes the adapters part of the model's own weights, computed in fp32 and rounded once; wrappers go.

    A head that shares its weights with the input embeddings and has a low-rank update gets weights of its
    own first.
    """
    rounded: dict[int, nn.Parameter] = {}
    for name, module in adapters(model).items():
        if isinstance(module, LoraLinear | LoraEmbedding):
            root = module.root
            put(model, name, root)
            if not isinstance(root, QuantLinear) and len(owners(model)[id(root.weight)]) > 1:
                untie(model, name)
            put(model, name, module.merge())
        elif isinstance(module, LoraExperts | TokenRows):
            put(model, name, module.merge())
        else:
            put(model, name, module.restore(rounded))


def refuse_adapted(model: nn.Module) -> None:
    """Raises ModelError if the model has adapters already."""
    present = adapters(model)
    if present:
        raise ModelError(
            f"This model already has adapters on {len(present)} modules (such as {next(iter(present))}). "
            "Merge them first (`merge_adapters`), or load the model anew."
        )


def wrap_whole(model: nn.Module, names: Sequence[str]) -> None:
    """Makes the modules trainable whole, in place; weights that they share stay shared."""
    masters: dict[int, nn.Parameter] = {}
    for name in names:
        put(model, name, WholeModule(model.get_submodule(name), masters))


def wrap_biases(model: nn.Module, besides: Sequence[str]) -> None:
    """Trains the biases of all modules but those named `besides`, and but those that are trained whole, in place."""
    masters: dict[int, nn.Parameter] = {}
    whole = tuple(f"{name}." for name, module in adapters(model).items() if isinstance(module, WholeModule))
    for name, module in list(model.named_modules()):
        has = isinstance(module._parameters.get("bias"), nn.Parameter)
        if has and name not in besides and not f"{name}.".startswith(whole):
            put(model, name, WholeModule(module, masters, only="bias"))


def wrap_tokens(model: nn.Module, names: Sequence[str], tokens: Sequence[int]) -> nn.Parameter:
    """Gives the tokens rows of their own in the modules, which share them, in place. Returns the rows [N, D]."""
    rows: nn.Parameter | None = None
    for name in names:
        wrapped = TokenRows(model.get_submodule(name), tokens, rows)
        rows = wrapped.rows
        put(model, name, wrapped)
    assert rows is not None, "somebody holds them"
    return rows


def report(model: nn.Module) -> LoraReport:
    """What the adapters on this model touch."""
    present = adapters(model)
    return LoraReport(
        targets=tuple(name for name, module in present.items() if isinstance(module, LOW_RANK)),
        saved=tuple(
            name for name, module in present.items() if isinstance(module, WholeModule) and not module.only
        ),
        num_trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def _refuse_no_bias(model: nn.Module, bias: str, targets: Sequence[str]) -> None:
    """Raises ModelError where `lora.bias` means no bias at all."""
    names = targets if bias == "lora_only" else [name for name, _ in model.named_modules()]
    if bias != "none" and not any(model.get_submodule(n)._parameters.get("bias") is not None for n in names):
        where = (
            "None of the adapted layers"
            if bias == "lora_only"
            else f"No module of this {type(model).__name__}"
        )
        raise ModelError(f"{where} has a bias, so lora.bias: {bias} trains none. Leave lora.bias out.")


def _refuse_beside_experts(
    stacked: Sequence[str], dora: bool, dropout: float, init: str, restarts: int
) -> None:
    """Raises ModelError for what adapters of stacked experts cannot have."""
    found = {
        "lora.dora": dora,
        "lora.dropout": dropout,
        "lora.init": init != "kaiming",
        "lora.restart": restarts,
    }
    if stacked and (keys := [key for key, given in found.items() if given]):
        raise ModelError(
            f"lora.experts puts adapters on stacked experts, which have no {', '.join(keys)} of their own. Leave that "
            "out, or leave out lora.experts."
        )


def _refuse_with_embedding(name: str, dora: bool, restarts: int) -> None:
    found = {"lora.dora": dora, "lora.restart": restarts}
    if keys := [key for key, given in found.items() if given]:
        raise ModelError(
            f"lora.target means the embedding {name}, and {', '.join(keys)} is for linear layers only. Leave one out."
        )
