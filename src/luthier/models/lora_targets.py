"""Which modules an adapter touches: names and patterns from the config, resolved against one model.

Names are matched as PEFT matches them: a name stands for every module whose full name equals it or ends in
"." and it. Everything that cannot work is collected and told at once.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches

from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError
from luthier.models.quantised.embeddings import StoredEmbedding, StoredHead
from luthier.models.quantised.linear import QuantLinear
from luthier.models.quantised.weight import StoredWeight
from luthier.models.rounded.linear import RoundedLinear

Matcher = Callable[[str, str], bool]

# Their weights are read by another module, their own forward never runs: an adapter would have no effect.
_NEVER_CALLED = (nn.modules.linear.NonDynamicallyQuantizableLinear,)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def is_linear(module: nn.Module) -> bool:
    """Whether LoRA can work on this module: nn.Linear or the transposed layer of GPT-2, with their own forward, or a
    linear layer that is stored in few bits or rounded to them.

    Subclasses that compute something else, such as routers that return what they chose, are none.
    """
    if isinstance(module, QuantLinear | RoundedLinear):
        return True
    if not isinstance(module, nn.Linear | Conv1D) or isinstance(module, _NEVER_CALLED):
        return False
    return type(module).forward in (nn.Linear.forward, Conv1D.forward)


def named(name: str, path: str) -> bool:
    """Whether `name` stands for the module at `path`: equal, or the end of it after a dot."""
    return path == name or path.endswith("." + name)


def inside(path: str, parents: Iterable[str]) -> bool:
    """Whether the module at `path` is one of `parents` or lies within one."""
    return any(path == parent or path.startswith(parent + ".") for parent in parents)


def linear_names(model: nn.Module) -> list[str]:
    """Full names of all linear layers, in the model's order."""
    return [name for name, module in model.named_modules() if name and is_linear(module)]


def input_embeddings(model: nn.Module) -> nn.Module | None:
    """The layer that tokens go in by, if the model has one and says so."""
    getter = getattr(model, "get_input_embeddings", None)
    return getter() if getter is not None else None


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """The layer that makes logits, if the model has one and says so."""
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if getter is not None else None


def match_targets(model: nn.Module, target: str | Sequence[str], saved: Sequence[str] = ()) -> list[str]:
    """Full names of the linear layers that `lora.target` means, and of the input embeddings if it names them, in the
    model's order, without those in `saved`.

    `target`: "all" (every linear layer but the one that makes logits), names, or one regular expression for
    full names. Raises ModelError for names without a module and for modules that are not linear.
    """
    if target == "all":
        head = output_embeddings(model)
        found = [name for name in linear_names(model) if model.get_submodule(name) is not head]
    elif isinstance(target, str):
        found = _match_pattern(model, target)
    else:
        found = _match_names(model, target, "lora.target")
        if not found:
            raise ModelError(
                "lora.target is an empty list. Name modules, or leave it out to mean all linear layers."
            )
    free = [name for name in found if not inside(name, saved)]
    if found and not free:
        raise ModelError(
            f"lora.target means {_some(found)}, but lora.modules_to_save (with what shares its weights) "
            f"means {_some(saved)}, which is trained whole, so nothing is left to adapt. "
            "Name other modules in lora.target, or leave out lora.modules_to_save."
        )
    embeddings = input_embeddings(model)
    modules = {name: model.get_submodule(name) for name in free}
    faults = [
        _stored(n) if isinstance(one, StoredEmbedding | StoredHead) else _not_linear(model, n)
        for n, one in modules.items()
        if isinstance(one, StoredEmbedding) or not (is_linear(one) or one is embeddings)
    ]
    if faults:
        raise ModelError(
            "\n".join([*faults[:8], *([f"... and {len(faults) - 8} more"] if len(faults) > 8 else [])])
        )
    if not free:
        raise ModelError(
            f"lora.target: {type(model).__name__} has no linear layer that LoRA can adapt. "
            "Tune all weights instead: leave out the section `lora`."
        )
    return free


def match_saved(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Full names of the modules that `lora.modules_to_save` means, with every module that shares their
    weights.

    Tied embeddings stay tied: to train one is to train both. Raises ModelError for names without a module,
    for lists of modules and for modules without weights.
    """
    found = _match_names(model, names, "lora.modules_to_save")
    faults = [fault for name in found if (fault := _not_trainable(name, model.get_submodule(name)))]
    if faults:
        raise ModelError("\n".join(faults))
    found = [name for name in found if not inside(name, set(found) - {name})]
    meant = {*found, *_sharing(model, found)}
    return [name for name, _ in model.named_modules() if name in meant]


def owners(model: nn.Module) -> dict[int, list[str]]:
    """Names of the modules that own each parameter, by its id; more than one where weights are tied."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            found.setdefault(id(parameter), []).append(name)
    return found


def exact_names(wanted: Sequence[str], existing: Iterable[str], matches: Matcher) -> list[str]:
    """The shortest list of names that stand, under `matches(name, path)`, for exactly the `wanted` paths.

    A last component where that is exact, else a full name. Raises ModelError where even a full name would
    stand for a further module.
    """
    chosen: list[str] = []
    wanted_set, others = set(wanted), sorted(set(existing) - set(wanted))
    for path in wanted:
        if any(matches(name, path) for name in chosen):
            continue
        options = (path.rpartition(".")[2], path)
        name = next((o for o in options if not any(matches(o, other) for other in others)), None)
        if name is None:
            further = next(other for other in others if matches(path, other))
            raise ModelError(
                f"{path} cannot be named in a PEFT adapter: its name would also stand for {further}. "
                "Leave it out of lora.target and lora.modules_to_save, or name both."
            )
        chosen.append(name)
    assert all(any(matches(name, path) for name in chosen) for path in wanted_set)
    return chosen


def _match_names(model: nn.Module, names: Sequence[str], key: str) -> list[str]:
    paths = [path for path, _ in model.named_modules() if path]
    missing = [name for name in names if not any(named(name, path) for path in paths)]
    if missing:
        raise ModelError("\n".join([*(_unknown(name, paths, key) for name in missing), _linear_hint(model)]))
    return [path for path in paths if any(named(name, path) for name in names)]


def _match_pattern(model: nn.Module, pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ModelError(f"lora.target: {pattern!r} is not a regular expression: {error}.") from error
    paths = [path for path, _ in model.named_modules() if path]
    found = [path for path in paths if compiled.fullmatch(path)]
    if not found:
        hint = (
            f" To mean modules by their last name, give a list: [{pattern}]."
            if pattern.isidentifier()
            else ""
        )
        raise ModelError(
            f"lora.target: the regular expression {pattern!r} matches no full name of a module "
            f"(such as {(linear_names(model) or paths)[0]}).{hint}\n{_linear_hint(model)}"
        )
    return found


def _sharing(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Modules outside `names` that own a parameter also owned inside `names`."""
    return [
        path
        for paths in owners(model).values()
        if any(inside(path, names) for path in paths)
        for path in paths
        if not inside(path, names)
    ]


def _not_trainable(name: str, module: nn.Module) -> str | None:
    kind = type(module).__name__
    if any(isinstance(part, StoredWeight) for part in module.modules()):
        return (
            f"lora.modules_to_save: {name} is stored in few bits (section quant), so it cannot be trained whole. "
            "Name it in quant.skip, too."
        )
    if isinstance(module, _CONTAINERS):
        first = next((child for child, _ in module.named_children()), "0")
        return (
            f"lora.modules_to_save: {name} is a {kind}, which is never called itself, so it cannot be "
            f"trained as one module. Name the modules in it, such as {name}.{first}."
        )
    if next(module.parameters(), None) is None:
        return f"lora.modules_to_save: {name} ({kind}) has no weights to train."
    return None


def _not_linear(model: nn.Module, name: str) -> str:
    kind = type(model.get_submodule(name)).__name__
    return (
        f"lora.target: {name} is of class {kind}, neither a linear layer nor the input embeddings, which is all that "
        "LoRA adapts. To train it whole, move it to lora.modules_to_save."
    )


def _stored(name: str) -> str:
    return (
        f"lora.target: {name} is stored in few bits (quant.embeddings), and adapters are put on embeddings and heads "
        "that are whole only. Leave it out of lora.target, or name it in quant.skip."
    )


def _unknown(name: str, paths: Sequence[str], key: str) -> str:
    short = sorted({path.rpartition(".")[2] for path in paths})
    near = get_close_matches(name, paths if "." in name else short, n=3, cutoff=0.5)
    return f"{key}: no module is named {name!r}" + (f"; the nearest: {', '.join(near)}." if near else ".")


def _linear_hint(model: nn.Module) -> str:
    short = sorted({name.rpartition(".")[2] for name in linear_names(model)})
    return (
        f"Linear layers of this model: {', '.join(short)}." if short else "This model has no linear layers."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
