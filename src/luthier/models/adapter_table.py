"""Which adapters a model has and how each of them is computed, for people: nothing falls back unseen."""

from torch import nn

from luthier.models.fused.fuse import Fusion
from luthier.models.lora import LoraEmbedding, LoraExperts, LoraLinear, WholeModule, adapters
from luthier.models.lora_targets import inside, output_embeddings
from luthier.models.rounded.linear import RoundedLinear


def adapter_table(model: nn.Module, fusion: Fusion | None, why_plain: str) -> list[str]:
    """One line for all adapters that have one shape and are computed alike.

    `why_plain` is what is said of adapters outside the fused layers.
    """
    fused = _fused_names(model, fusion)
    head = output_embeddings(model)
    groups: dict[str, list[str]] = {}
    for name, module in adapters(model).items():
        if isinstance(module, LoraExperts):
            for part, (rank, alpha) in module.settings.items():
                how = f"rank {rank}, alpha {alpha:g}, one for each expert; plain: added to the weights in each pass"
                groups.setdefault(how, []).append(f"{name}.{part}")
        elif isinstance(module, LoraEmbedding):
            how = f"rank {module.rank}, alpha {module.alpha:g}; plain: rows of A are looked up, then times B"
            groups.setdefault(how, []).append(name)
        elif isinstance(module, LoraLinear):
            if name in fused and isinstance(module.root, RoundedLinear):
                how = "fused: rounded together with its weight"
            elif name in fused:
                how = "fused: in the tails of its layer's matrix product"
            elif module is head:
                how = "one product with the head"
            else:
                how = f"plain: {_reason(name, fusion, model) or why_plain}"
            for one in module.chain:
                groups.setdefault(f"{_shape(one)}; {how}", []).append(name)
        elif isinstance(module, WholeModule) and module.only:
            how = "fused: with its layer" if name in fused else "plain"
            groups.setdefault(f"only the bias is trained; {how}", []).append(name)
    return [f"  {_leaves(names)}: {shape}" for shape, names in groups.items()]


def _shape(module: LoraLinear) -> str:
    words = f"{module.name}: " * bool(module.name) + f"rank {module.rank}, alpha {module.alpha:g}"
    words += ", rank-stabilised" if module.rslora else ""
    words += ", with lengths (DoRA)" if module.dora else ""
    words += f", dropout {module.dropout:g}" if module.dropout else ""
    if module.start_A is not None:
        times = f", and {module.restarts} times as much for restarts"
        words += times if module.restarts else ", and as much again that it started as"
    words += ", and the bias" if module.lora_bias is not None else ""
    frozen = [part for part in ("A", "B") if not getattr(module, f"lora_{part}").requires_grad]
    return words + (f", {' and '.join(frozen)} frozen" if frozen else "")


def _leaves(names: list[str]) -> str:
    """`q_proj, k_proj (60)`: the last names and how many modules they are."""
    return f"{', '.join(dict.fromkeys(name.rpartition('.')[2] for name in names))} ({len(names)})"


def _fused_names(model: nn.Module, fusion: Fusion | None) -> set[str]:
    """Full names of the modules that fused layers compute."""
    names = {id(module): name for name, module in model.named_modules()}
    layers = fusion.layers if fusion is not None else ()
    return {names[id(module)] for layer in layers for module in layer.modules.values() if id(module) in names}


def _reason(name: str, fusion: Fusion | None, model: nn.Module) -> str:
    """Why an adapter in a fused layer is not fused itself; empty for one that is in none."""
    names = {id(module): path for path, module in model.named_modules()}
    layers = [names[id(layer.layer)] for layer in fusion.layers] if fusion is not None else []
    return "a feed-forward part that is left to the layer, such as experts" if inside(name, layers) else ""
