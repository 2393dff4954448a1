"""Adapters on disk, in PEFT's format, both ways: adapter_config.json and adapter_model.safetensors.

Where a model has several, the first one lies in the folder itself and each other one in a folder of its name there, as
PEFT has it; `adapters.json` says which of these belong to the model.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from luthier.errors import ModelError
from luthier.models.adapter_plan import (
    CONFIG_NAME,
    PREFIX,
    SEVERAL,
    WEIGHTS_NAME,
    AdapterPlan,
    another_adapter,
    further_adapters,
    mismatches,
    plan_adapter,
    read_adapter,
    scale_of,
)
from luthier.models.adapter_shapes import PARAMETERS
from luthier.models.adapter_tensors import experts_b, named_tensors
from luthier.models.lora import (
    LoraEmbedding,
    LoraExperts,
    LoraLinear,
    LoraReport,
    WholeModule,
    adapter_names,
    adapters,
    adapters_called,
    put,
    refuse_adapted,
    report,
    untie,
    wrap_tokens,
    wrap_whole,
)
from luthier.models.lora_beside import beside
from luthier.models.lora_targets import exact_names, inside, named, owners
from luthier.models.new_tokens import room_for
from luthier.models.planned_tokens import SETTING, rows_needed
from luthier.models.token_rows import TokenRows
from luthier.models.value_head import task_of
from luthier.runs.atomic import atomic_write_bytes, atomic_write_text


def save_adapter(model: nn.Module, folder: Path, *, base_name: str, revision: str | None = None) -> None:
    """Writes the model's adapters as PEFT 0.21 does, masters in full precision; other files in `folder` stay.

    Raises ModelError for a model without adapters or with ones that PEFT's format cannot hold, RunError where
    the disk cannot be written to.
    """
    names = adapter_names(model)
    for name in names or [""]:
        config = _config(model, base_name, revision, name)
        # Copies, because tied weights may not share memory in a safetensors file.
        parts = named_tensors(model, name).items()
        content = save({key: one.whole().cpu().clone().contiguous() for key, one in parts}, {"format": "pt"})
        (folder / name).mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(folder / name / WEIGHTS_NAME, content)
        atomic_write_text(folder / name / CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True) + "\n")
    if len(names) > 1:
        atomic_write_text(folder / SEVERAL, json.dumps({"beside": names[1:]}, indent=2) + "\n")


def attach_adapter(model: nn.Module, folder: Path, *, trainable: bool = True) -> LoraReport:
    """Puts a LoRA adapter from disk on a model without one, whether Luthier or PEFT wrote it, and those that were saved
    with it; the rest is frozen. A model that lacks rows for the adapter's new tokens gets them.

    Raises ModelError, and leaves the model as it was, if the folder holds no LoRA adapter that can be read,
    or one that uses what is not supported, or if any tensor is missing, unexpected or of a wrong shape: all
    at once.
    """
    refuse_adapted(model)
    files = read_adapter(folder)
    with room_for(model, rows_needed(model, files.config, files.tensors)):
        plan = plan_adapter(model, files)
        others = {name: plan_adapter(model, read_adapter(folder / name)) for name in further_adapters(folder)}
    model.requires_grad_(False)
    for name in plan.untied:
        untie(model, name)
    wrap_whole(model, list(plan.saved))
    for group in plan.tokens:
        rows_ND = wrap_tokens(model, group.names, group.tokens)
        with torch.no_grad():
            rows_ND.copy_(group.rows_ND)
    for name, weights in plan.saved.items():
        _whole(model, name).base.load_state_dict(dict(weights))
    _put_low_rank(model, plan)
    for name, other in others.items():
        with beside(model, name):
            _put_low_rank(model, other, name)
    if not trainable:
        model.requires_grad_(False)
    return report(model)


def attach_beside(model: nn.Module, name: str, folder: Path, *, trained: bool) -> list[str]:
    """Puts one more adapter from disk on a model that has one, called `name`. Returns the layers that it is on.

    Raises ModelError if it has more than updates of linear layers, or does not fit.
    """
    files = read_adapter(folder)
    with beside(model, name):
        plan = plan_adapter(model, files)
        lengths = any(one.magnitude_M is not None for one in plan.linears.values())
        embedded = any(isinstance(model.get_submodule(path), nn.Embedding) for path in plan.linears)
        if (
            lengths
            or embedded
            or plan.saved
            or plan.tokens
            or plan.biases
            or plan.experts
            or further_adapters(folder)
        ):
            raise ModelError(
                f"{folder} has more than updates of linear layers (lengths, embeddings, whole modules, biases, experts "
                "or further adapters), so it cannot be added to another one. Merge it into the base (`luthier export`)."
            )
        _put_low_rank(model, plan, name)
    for one in adapters_called(model, name).values():
        one.lora_A.requires_grad_(trained)
        one.lora_B.requires_grad_(trained)
    return list(plan.linears)


@torch.no_grad()
def _put_low_rank(model: nn.Module, plan: AdapterPlan, adapter: str = "") -> None:
    """Puts updates and trained biases on the model, as the adapter of that name."""
    made: dict[str, LoraLinear | LoraEmbedding | LoraExperts] = {}
    for name, planned in plan.linears.items():
        base = model.get_submodule(name)
        if isinstance(base, nn.Embedding):
            made[name] = one = LoraEmbedding(base, planned.rank, planned.alpha, planned.rslora)
            one.lora_embedding_A.copy_(planned.a_RK)
            one.lora_embedding_B.copy_(planned.b_MR)
            continue
        dora = planned.magnitude_M is not None
        settings = planned.rank, planned.alpha, plan.dropout, planned.rslora, dora
        made[name] = one = LoraLinear(base, *settings, name=adapter)
        one.lora_A.copy_(planned.a_RK)
        one.lora_B.copy_(planned.b_MR)
        if one.lora_magnitude is not None and planned.magnitude_M is not None:
            one.lora_magnitude.copy_(planned.magnitude_M)
        if name in plan.biases:
            one.train_bias()
            assert one.lora_bias is not None
            one.lora_bias.copy_(plan.biases[name])
    for name, planned in plan.experts.items():
        made[name] = one = LoraExperts(model.get_submodule(name), planned.settings, planned.rslora)
        for tensor, (flat_a, flat_b) in planned.factors.items():
            one.lora_A[tensor].copy_(flat_a.view(one.lora_A[tensor].shape))
            one.lora_B[tensor].copy_(experts_b(flat_b, len(one.lora_B[tensor])))
    for name, bias_M in plan.biases.items():
        if name not in made:
            whole = WholeModule(model.get_submodule(name), {}, only="bias")
            whole.base.get_parameter("bias").copy_(bias_M)
            put(model, name, whole)
    for name, one in made.items():
        put(model, name, one)


def load_adapter(model: nn.Module, folder: Path, *, trainable: bool = True) -> LoraReport:
    """Reads an adapter into a model: into the adapter that it has, bit for bit, or as a new one if it has
    none.

    An adapter that is there keeps its parameters, so that an optimizer can go on with them. Raises
    ModelError, and changes nothing, if what is on disk is not the same adapter with other values.
    """
    present = adapters(model)
    if not present:
        return attach_adapter(model, folder, trainable=trainable)
    for name in adapter_names(model):
        _load(model, folder / name, name)
    if not trainable:
        model.requires_grad_(False)
    return report(model)


def _load(model: nn.Module, folder: Path, adapter: str) -> None:
    """Reads the values of one adapter."""
    files = read_adapter(folder)
    targets = {key.removeprefix(PREFIX): parts for key, parts in named_tensors(model, adapter).items()}
    faults = mismatches({key: tuple(parts.whole().shape) for key, parts in targets.items()}, files.tensors)
    for name, module in adapters_called(model, adapter).items():
        if not math.isclose(scale := scale_of(files.config, name), module.scale, rel_tol=1e-9):
            faults.append(f"other scale: {name} has {scale:g} in the file, {module.scale:g} in the model")
    if faults:
        raise another_adapter(model, files, faults)
    with torch.no_grad():
        for key, parts in targets.items():
            parts.take(files.tensors[key])


def _shape_in_files(module: LoraLinear) -> tuple[int, float]:
    """Rank and alpha that stand in PEFT's format for all of the module's factors, with the module's scale."""
    ranks = module.rank if module.start_A is None else module.rank + len(module.start_A)
    power = 0.5 if module.rslora else 1.0
    return ranks, module.alpha * (ranks / module.rank) ** power


def _whole(model: nn.Module, name: str) -> WholeModule:
    module = model.get_submodule(name)
    assert isinstance(module, WholeModule)
    return module


def _config(model: nn.Module, base_name: str, revision: str | None, adapter: str) -> dict[str, Any]:
    """PEFT's settings for the adapter of that name on this model."""
    present = adapters(model) if not adapter else {}
    linears = adapters_called(model, adapter)
    saved = [name for name, one in present.items() if isinstance(one, WholeModule) and one.only is None]
    shapes = {name: _shape_in_files(module) for name, module in linears.items()}
    embeddings = {name: one for name, one in present.items() if isinstance(one, LoraEmbedding)}
    shapes |= {name: (one.rank, one.alpha) for name, one in embeddings.items()}
    experts = {name: one for name, one in present.items() if isinstance(one, LoraExperts)}
    shapes |= {f"{name}.{part}": own for name, one in experts.items() for part, own in one.settings.items()}
    every = [*linears.values(), *embeddings.values(), *experts.values()]
    if not every:
        raise ModelError("This model has no LoRA adapter to save. Put one on it first (`apply_lora`).")
    for setting in ("dropout", "rslora", "dora"):
        if len(found := {getattr(module, setting) for module in linears.values()}) > 1:
            raise ModelError(
                f"PEFT's format holds one {setting} for all modules, not {sorted(found)}. Make it one."
            )
    first = next(iter(linears.values()), every[0])
    rank = Counter(own_rank for own_rank, _ in shapes.values()).most_common(1)[0][0]
    alpha = Counter(own_alpha for _, own_alpha in shapes.values()).most_common(1)[0][0]
    paths = _base_names(model)
    # In PEFT a name in modules_to_save stands for every module whose name ends in it, dot or no dot.
    saved_by = exact_names(saved, paths, lambda name, path: path.endswith(name))
    free = [path for path in paths if not inside(path, saved)]
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_of(model),
        "base_model_name_or_path": base_name,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": first.dropout,
        "use_rslora": first.rslora,
        "use_dora": first.dora,
        "bias": _bias_setting(present),
        "fan_in_fan_out": any(module.transposed for module in linears.values()),
        "init_lora_weights": True,
        "target_modules": sorted(exact_names([*linears, *embeddings], free, named)),
        "modules_to_save": saved_by or None,
        "rank_pattern": {_anchored(n): r for n, (r, _) in shapes.items() if r != rank},
        "alpha_pattern": {_anchored(n): _plain(a) for n, (_, a) in shapes.items() if a != alpha},
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    if experts:
        config[PARAMETERS] = sorted(
            f"{name}.{part}" for name, one in experts.items() for part in one.settings
        )
    if any(len(paths) > 1 for paths in owners(model).values() if inside(paths[0], saved)):
        config["ensure_weight_tying"] = True
    # PEFT finds by itself what shares its rows with the input embeddings, which come first.
    holders = {id(m.rows): name for name, m in reversed(present.items()) if isinstance(m, TokenRows)}.values()
    for name in exact_names(sorted(holders), paths, lambda name, path: path.endswith(name)):
        module = next(present[path] for path in holders if path.endswith(name))
        config.setdefault(SETTING, {})[name] = module.tokens
    return config


def _bias_setting(present: dict[str, Any]) -> str:
    """PEFT's setting `bias` for which biases are trained."""
    if any(isinstance(one, WholeModule) and one.only for one in present.values()):
        return "all"
    trained = any(isinstance(one, LoraLinear) and one.lora_bias is not None for one in present.values())
    return "lora_only" if trained else "none"


def _base_names(model: nn.Module) -> list[str]:
    """Module names as they are without adapters."""
    wrapped = set(adapters(model))
    names = []
    for name, _ in model.named_modules():
        parent = next((w for w in wrapped if name.startswith(w + ".")), None)
        if parent is None:
            names.append(name)
            continue
        inside_it = name.removeprefix(parent)
        while inside_it.startswith(".base.base"):  # one adapter around another
            inside_it = inside_it.removeprefix(".base")
        if inside_it.startswith(".base."):
            names.append(parent + inside_it.removeprefix(".base"))
    return [name for name in names if name]


def _anchored(name: str) -> str:
    """A key of PEFT's patterns (regular expressions, matched at the end of a name) for one module only."""
    return f"^{re.escape(name)}"


def _plain(value: float) -> float:
    """A whole number as an int, as people write it."""
    return int(value) if float(value).is_integer() else value
