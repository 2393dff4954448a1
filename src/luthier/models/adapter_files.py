"""Adapters on disk, in PEFT's format, both ways: adapter_config.json and adapter_model.safetensors."""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.adapter_plan import (
    CONFIG_NAME,
    MAGNITUDE,
    PREFIX,
    WEIGHTS_NAME,
    misfit,
    mismatches,
    plan_adapter,
    read_adapter,
    scale_of,
)
from luthier.models.lora import (
    LoraLinear,
    LoraReport,
    WholeModule,
    adapters,
    put,
    refuse_adapted,
    report,
    untie,
    wrap_tokens,
    wrap_whole,
)
from luthier.models.lora_targets import exact_names, inside, named, owners
from luthier.models.new_tokens import room_for
from luthier.models.planned_tokens import SETTING, rows_key, rows_needed
from luthier.models.token_rows import TokenRows
from luthier.models.value_head import task_of
from luthier.runs.atomic import atomic_write_bytes, atomic_write_text


def save_adapter(model: nn.Module, folder: Path, *, base_name: str, revision: str | None = None) -> None:
    """Writes the model's adapter as PEFT 0.21 does, masters in full precision; other files in `folder` stay.

    Raises ModelError for a model without adapters or with ones that PEFT's format cannot hold, RunError where
    the disk cannot be written to.
    """
    config = _config(model, base_name, revision)
    # Copies, because tied weights may not share memory in a safetensors file.
    tensors = {key: parts.whole().cpu().clone().contiguous() for key, parts in _named_tensors(model).items()}
    content = save(tensors, {"format": "pt"})
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / WEIGHTS_NAME, content)
    atomic_write_text(folder / CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True) + "\n")


def attach_adapter(model: nn.Module, folder: Path, *, trainable: bool = True) -> LoraReport:
    """Puts a LoRA adapter from disk on a model without one, whether Luthier or PEFT wrote it; the rest is
    frozen. A model that lacks rows for the adapter's new tokens gets them.

    Raises ModelError, and leaves the model as it was, if the folder holds no LoRA adapter that can be read,
    or one that uses what is not supported, or if any tensor is missing, unexpected or of a wrong shape: all
    at once.
    """
    refuse_adapted(model)
    files = read_adapter(folder)
    with room_for(model, rows_needed(model, files.config, files.tensors)):
        plan = plan_adapter(model, files)
    model.requires_grad_(False)
    for name in plan.untied:
        untie(model, name)
    wrap_whole(model, list(plan.saved))
    for group in plan.tokens:
        rows_ND = wrap_tokens(model, group.names, group.tokens)
        with torch.no_grad():
            rows_ND.copy_(group.rows_ND)
    for name, planned in plan.linears.items():
        base = model.get_submodule(name)
        dora = planned.magnitude_M is not None
        put(model, name, LoraLinear(base, planned.rank, planned.alpha, plan.dropout, planned.rslora, dora))
    for name, weights in plan.saved.items():
        _whole(model, name).base.load_state_dict(dict(weights))
    with torch.no_grad():
        for name, planned in plan.linears.items():
            module = model.get_submodule(name)
            assert isinstance(module, LoraLinear)
            module.lora_A.copy_(planned.a_RK)
            module.lora_B.copy_(planned.b_MR)
            if module.lora_magnitude is not None and planned.magnitude_M is not None:
                module.lora_magnitude.copy_(planned.magnitude_M)
    if not trainable:
        model.requires_grad_(False)
    return report(model)


def load_adapter(model: nn.Module, folder: Path, *, trainable: bool = True) -> LoraReport:
    """Reads an adapter into a model: into the adapter that it has, bit for bit, or as a new one if it has
    none.

    An adapter that is there keeps its parameters, so that an optimizer can go on with them. Raises
    ModelError, and changes nothing, if what is on disk is not the same adapter with other values.
    """
    present = adapters(model)
    if not present:
        return attach_adapter(model, folder, trainable=trainable)
    files = read_adapter(folder)
    targets = {key.removeprefix(PREFIX): parts for key, parts in _named_tensors(model).items()}
    faults = mismatches({key: tuple(parts.whole().shape) for key, parts in targets.items()}, files.tensors)
    for name, module in present.items():
        if not isinstance(module, LoraLinear):
            continue
        if not math.isclose(scale := scale_of(files.config, name), module.scale, rel_tol=1e-9):
            faults.append(f"other scale: {name} has {scale:g} in the file, {module.scale:g} in the model")
    if faults:
        raise misfit(model, files, faults)
    with torch.no_grad():
        for key, parts in targets.items():
            parts.take(files.tensors[key])
    if not trainable:
        model.requires_grad_(False)
    return report(model)


@dataclass(frozen=True)
class Parts:
    """A tensor of a file, and the adapter's tensors, not copies, that it is made of: one after the other along `dim`.

    An adapter that started as something (`LoraLinear.begin`) is one of twice its rank in PEFT's format.
    """

    tensors: tuple[Tensor, ...]
    dim: int = 0

    def whole(self) -> Tensor:
        """The tensor as the file has it."""
        return self.tensors[0] if len(self.tensors) == 1 else torch.cat(self.tensors, self.dim)

    def take(self, whole: Tensor) -> None:
        """Copies what the file has into the adapter."""
        if len(self.tensors) == 1:
            self.tensors[0].copy_(whole)
            return
        sizes = [tensor.shape[self.dim] for tensor in self.tensors]
        for tensor, part in zip(self.tensors, whole.split(sizes, self.dim), strict=True):
            tensor.copy_(part)


def _named_tensors(model: nn.Module) -> dict[str, Parts]:
    """The adapter's tensors by PEFT's keys. Tied weights stand under each of their names."""
    tensors: dict[str, Parts] = {}
    rows: set[int] = set()
    for name, module in adapters(model).items():
        if isinstance(module, LoraLinear):
            all_a = [part.detach() for part in (module.lora_A, module.start_A) if part is not None]
            all_b = [part.detach() for part in (module.lora_B, module.start_B) if part is not None]
            tensors[f"{PREFIX}{name}.lora_A.weight"] = Parts(tuple(all_a))
            tensors[f"{PREFIX}{name}.lora_B.weight"] = Parts(tuple(all_b), dim=1)
            if module.lora_magnitude is not None:
                tensors[f"{PREFIX}{name}.{MAGNITUDE}"] = Parts((module.lora_magnitude.detach(),))
        elif isinstance(module, TokenRows):
            if id(module.rows) not in rows:  # of those that share them, the first has them in PEFT's files
                rows.add(id(module.rows))
                tensors[PREFIX + rows_key([name])] = Parts((module.rows.detach(),))
        else:
            weights = module.base.state_dict().items()
            tensors.update({f"{PREFIX}{name}.{part}": Parts((weight,)) for part, weight in weights})
    return tensors


def _shape_in_files(module: LoraLinear) -> tuple[int, float]:
    """Rank and alpha that stand in PEFT's format for all of the module's factors, with the module's scale."""
    ranks = module.rank if module.start_A is None else module.rank + len(module.start_A)
    power = 0.5 if module.rslora else 1.0
    return ranks, module.alpha * (ranks / module.rank) ** power


def _whole(model: nn.Module, name: str) -> WholeModule:
    module = model.get_submodule(name)
    assert isinstance(module, WholeModule)
    return module


def _config(model: nn.Module, base_name: str, revision: str | None) -> dict[str, Any]:
    """PEFT's settings for the adapters on this model."""
    present = adapters(model)
    linears = {name: module for name, module in present.items() if isinstance(module, LoraLinear)}
    saved = [name for name, module in present.items() if isinstance(module, WholeModule)]
    if not linears:
        raise ModelError("This model has no LoRA adapter to save. Put one on it first (`apply_lora`).")
    for setting in ("dropout", "rslora", "dora"):
        if len(found := {getattr(module, setting) for module in linears.values()}) > 1:
            raise ModelError(
                f"PEFT's format holds one {setting} for all modules, not {sorted(found)}. Make it one."
            )
    first = next(iter(linears.values()))
    shapes = {name: _shape_in_files(module) for name, module in linears.items()}
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
        "bias": "none",
        "fan_in_fan_out": any(module.transposed for module in linears.values()),
        "init_lora_weights": True,
        "target_modules": sorted(exact_names(list(linears), free, named)),
        "modules_to_save": saved_by or None,
        "rank_pattern": {_anchored(n): r for n, (r, _) in shapes.items() if r != rank},
        "alpha_pattern": {_anchored(n): _plain(a) for n, (_, a) in shapes.items() if a != alpha},
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    if any(len(paths) > 1 for paths in owners(model).values() if inside(paths[0], saved)):
        config["ensure_weight_tying"] = True
    # PEFT finds by itself what shares its rows with the input embeddings, which come first.
    holders = {id(m.rows): name for name, m in reversed(present.items()) if isinstance(m, TokenRows)}.values()
    for name in exact_names(sorted(holders), paths, lambda name, path: path.endswith(name)):
        module = next(present[path] for path in holders if path.endswith(name))
        config.setdefault(SETTING, {})[name] = module.tokens
    return config


def _base_names(model: nn.Module) -> list[str]:
    """Module names as they are without adapters."""
    wrapped = set(adapters(model))
    names = []
    for name, _ in model.named_modules():
        parent = next((w for w in wrapped if name.startswith(w + ".")), None)
        if parent is None:
            names.append(name)
        elif name.startswith(parent + ".base."):
            names.append(parent + name.removeprefix(parent + ".base"))
    return [name for name in names if name]


def _anchored(name: str) -> str:
    """A key of PEFT's patterns (regular expressions, matched at the end of a name) for one module only."""
    return f"^{re.escape(name)}"


def _plain(value: float) -> float:
    """A whole number as an int, as people write it."""
    return int(value) if float(value).is_integer() else value
