"""A PEFT adapter folder, read and resolved against a model: which modules, which scale, whether every
tensor fits.

Modules are meant by PEFT's rules, so that a folder stands for the same function here and there. Nothing is
put on the model here; it may have names and shapes but no weights (the meta device), as it does when
merging.

Shape suffixes: K inputs, M outputs, R rank.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError
from luthier.models.adapter_shapes import (
    MAGNITUDE,
    PARAMETERS,
    PREFIX,
    can_adapt,
    expected_shapes,
    expert_keys,
    factor_keys,
    per_module,
    shapes_of_experts,
    target_experts,
    trained_biases,
)
from luthier.models.lora_targets import inside, named, owners
from luthier.models.lora_weight import lora_scale
from luthier.models.planned_tokens import rows_key, token_groups

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
SEVERAL = "adapters.json"

# What a setting of PEFT may hold for the adapter to be plain LoRA; anything else changes its meaning.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", "all", "lora_only", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica"),
}
# Settings that are read here, and settings that say nothing about what the adapter computes.
_READ = {
    "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules", "modules_to_save",
    "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "ensure_weight_tying",
    "trainable_token_indices", "use_dora", PARAMETERS,
}  # fmt: skip
_SILENT = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "fan_in_fan_out", "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "runtime_config", "modules_to_tie", "target_modules_to_tie",
}  # fmt: skip


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as it lies on disk: PEFT's settings, and its tensors without PEFT's prefix."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class PlannedLinear:
    """One low-rank update: its factors, their scale, and whether the weight it adds to is transposed."""

    a_RK: Tensor
    b_MR: Tensor
    alpha: float
    rslora: bool
    transposed: bool
    magnitude_M: Tensor | None = None
    """DoRA's lengths of the rows of the updated weight."""

    @property
    def rank(self) -> int:
        """R."""
        return self.a_RK.shape[0]

    @property
    def scale(self) -> float:
        """Factor on B·A."""
        return lora_scale(self.rank, self.alpha, self.rslora)


@dataclass(frozen=True)
class PlannedExperts:
    """Low-rank updates of the stacked tensors of some experts: rank and alpha by tensor, and A and B as in the file."""

    settings: Mapping[str, tuple[int, float]]
    factors: Mapping[str, tuple[Tensor, Tensor]]
    rslora: bool


@dataclass(frozen=True)
class PlannedTokens:
    """Embeddings of a few tokens, and the modules that have them: several where these share their weights."""

    names: tuple[str, ...]
    tokens: tuple[int, ...]
    rows_ND: Tensor


@dataclass(frozen=True)
class AdapterPlan:
    """An adapter resolved against a model. All names are full names in the model.

    `saved`: the wholly trained modules, and their tensors by parameter. `untied`: those of them that the
    adapter takes apart from modules they share weights with in the base model. `biases`: trained ones by module.
    """

    linears: Mapping[str, PlannedLinear]
    tokens: Sequence[PlannedTokens]
    saved: Mapping[str, Mapping[str, Tensor]]
    untied: Sequence[str]
    dropout: float
    biases: Mapping[str, Tensor]
    experts: Mapping[str, PlannedExperts]


def read_adapter(folder: Path) -> AdapterFiles:
    """Reads a folder in PEFT's format. Raises ModelError if it is not one, or uses what is not supported."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ModelError(f"{folder} holds no adapter: {CONFIG_NAME} is missing. Give the folder that has it.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}. Save the adapter again.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}, not an object. Save the adapter again.")
    if unsupported := _unsupported(config):
        raise ModelError(
            f"{folder} cannot be used: Luthier reads plain LoRA adapters, and this one has "
            f"{', '.join(unsupported)}. Merge it into its base model with PEFT and use the merged model."
        )
    return AdapterFiles(folder, config, _read_tensors(folder))


def further_adapters(folder: Path) -> list[str]:
    """The names of the adapters that were saved with the one of this folder, each in a folder of its name there."""
    path = folder / SEVERAL
    return json.loads(path.read_text(encoding="utf-8"))["beside"] if path.is_file() else []


def plan_adapter(model: nn.Module, files: AdapterFiles) -> AdapterPlan:
    """Finds the module of `model` for every tensor. Raises ModelError with all that does not fit.

    `model` may lie on the meta device: only names, classes and shapes are read.
    """
    config = files.config
    saved_names = _saved_names(model, config)
    target_names = [
        name
        for name, _ in model.named_modules()
        if name and _is_target(config, name) and not inside(name, saved_names)
    ]
    faults = [
        f"{name} is of class {type(model.get_submodule(name)).__name__}; LoRA is read for linear layers and embeddings"
        for name in target_names
        if not can_adapt(model.get_submodule(name))
    ]
    linear_names = [name for name in target_names if can_adapt(model.get_submodule(name))]
    experts = target_experts(model, config)
    biases = trained_biases(model, config, linear_names, saved_names)
    groups = token_groups(model, config, saved_names)
    expected = expected_shapes(model, config, linear_names, saved_names)
    expected |= {rows_key(names): (len(tokens), _columns(model, names[0])) for names, tokens in groups}
    expected |= {key: tuple(model.get_parameter(f"{name}.bias").shape) for name, key in biases.items()}
    for path, settings in experts.items():
        expected |= shapes_of_experts(model, path, settings)
    beside = {
        f"{name}.base_layer.weight" for name in linear_names
    }  # PEFT adds adapted embeddings as they are
    files = replace(
        files, tensors={key: tensor for key, tensor in files.tensors.items() if key not in beside}
    )
    faults += mismatches(expected, files.tensors)
    every = [f"{path}.{name}" for path, settings in experts.items() for name in settings]
    faults += [
        f"{PARAMETERS} names {target}, which is no stacked weight of this model"
        for target in config.get(PARAMETERS) or ()
        if not any(named(target, name) for name in every)
    ]
    if not expected and not faults:
        faults = [f"target_modules {config.get('target_modules')!r} names no module of this model"]
    if faults:
        raise misfit(model, files, faults)
    return AdapterPlan(
        linears={name: _planned_linear(model.get_submodule(name), name, files) for name in linear_names},
        tokens=[PlannedTokens(names, ids, files.tensors[rows_key(names)]) for names, ids in groups],
        saved={
            name: {part: files.tensors[f"{name}.{part}"] for part in model.get_submodule(name).state_dict()}
            for name in saved_names
        },
        untied=_untied(model, saved_names, files.tensors),
        dropout=float(config.get("lora_dropout") or 0.0),
        biases={name: files.tensors[key] for name, key in biases.items()},
        experts={path: _planned_experts(path, settings, files) for path, settings in experts.items()},
    )


def _planned_linear(module: nn.Module, name: str, files: AdapterFiles) -> PlannedLinear:
    """The update of one layer."""
    of_a, of_b = factor_keys(module, name)
    return PlannedLinear(
        a_RK=files.tensors[of_a],
        b_MR=files.tensors[of_b],
        alpha=per_module(files.config, "alpha_pattern", "lora_alpha", name),
        rslora=bool(files.config.get("use_rslora")),
        transposed=isinstance(module, Conv1D | nn.Embedding),
        magnitude_M=files.tensors.get(f"{name}.{MAGNITUDE}"),
    )


def _planned_experts(
    path: str, settings: Mapping[str, tuple[int, float]], files: AdapterFiles
) -> PlannedExperts:
    """The updates of the experts at `path`."""
    keys = expert_keys(path, list(settings)).items()
    factors = {
        name: (files.tensors[f"{key}.lora_A.weight"], files.tensors[f"{key}.lora_B.weight"])
        for name, key in keys
    }
    return PlannedExperts(settings, factors, bool(files.config.get("use_rslora")))


def plan_all(model: nn.Module, files: AdapterFiles) -> AdapterPlan:
    """An adapter together with those that were saved with it, as one: their updates are added up."""
    plan = plan_adapter(model, files)
    linears = dict(plan.linears)
    for name in further_adapters(files.folder):
        for path, other in plan_adapter(model, read_adapter(files.folder / name)).linears.items():
            linears[path] = _sum(linears[path], other) if path in linears else other
    return replace(plan, linears=linears)


def _sum(one: PlannedLinear, other: PlannedLinear) -> PlannedLinear:
    """One update of the sum of the ranks that is the sum of two."""
    a_RK = torch.cat([one.a_RK.float(), other.a_RK.float()])
    b_MR = torch.cat([one.scale * one.b_MR.float(), other.scale * other.b_MR.float()], 1)
    return PlannedLinear(a_RK, b_MR, float(len(a_RK)), False, one.transposed)


def scale_of(config: Mapping[str, Any], name: str) -> float:
    """Factor on the update of one module under PEFT's settings."""
    rank, alpha = (
        per_module(config, "rank_pattern", "r", name),
        per_module(config, "alpha_pattern", "lora_alpha", name),
    )
    return lora_scale(rank, alpha, bool(config.get("use_rslora")))


def mismatches(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> list[str]:
    """What is missing, unexpected or of a wrong shape, one line each."""
    missing = [f"missing: {key} {list(shape)}" for key, shape in expected.items() if key not in tensors]
    unexpected = [f"unexpected: {key} {list(t.shape)}" for key, t in tensors.items() if key not in expected]
    wrong = [
        f"wrong shape: {key} is {list(tensors[key].shape)} in the file, {list(shape)} in the model"
        for key, shape in expected.items()
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    return missing + unexpected + wrong


def another_adapter(model: nn.Module, files: AdapterFiles, faults: Sequence[str]) -> ModelError:
    """The error for values of an adapter of another shape than that which the model has."""
    told = misfit(model, files, faults)
    shapes = f"rank {files.config.get('r')}, on {files.config.get('target_modules')}"
    return ModelError(
        f"{files.folder} holds another adapter ({shapes}) than this run's. To go on with its values, give the section "
        f"lora that it was trained with; to train it in a new run, name it in lora.start.\n{told}"
    )


def misfit(model: nn.Module, files: AdapterFiles, faults: Sequence[str]) -> ModelError:
    """The error for an adapter that was not made for this model."""
    shown = [*faults[:40], *([f"... and {len(faults) - 40} more"] if len(faults) > 40 else [])]
    return ModelError(
        f"{files.folder} does not fit this {type(model).__name__}. Use the base model that it was made for "
        f"({files.config.get('base_model_name_or_path')}).\n  " + "\n  ".join(shown)
    )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ModelError(
                f"{folder} holds its weights as adapter_model.bin, a pickle that can run code when read. "
                f"Convert it: load it with PEFT and save it again, which writes {WEIGHTS_NAME}."
            )
        raise ModelError(f"{folder} holds no weights: {WEIGHTS_NAME} is missing. Save the adapter again.")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} cannot be read: {error}. Save or download the adapter again.") from error
    return {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    """Settings that make this more than plain LoRA, as `key=value`."""
    found = [
        f"{key}={config[key]!r}"
        for key, neutral in _NEUTRAL.items()
        if key in config and config[key] not in neutral
    ]
    known = {*_NEUTRAL, *_READ, *_SILENT}
    return found + [f"{key}={value!r}" for key, value in config.items() if key not in known and value]


def _is_target(config: Mapping[str, Any], name: str) -> bool:
    """Whether PEFT's settings mean the module of this name, by PEFT's rules."""
    target, exclude = config.get("target_modules") or [], config.get("exclude_modules") or []
    if _matches(exclude, name) or not _matches(target, name):
        return False
    layers = config.get("layers_to_transform")
    if layers is None or layers == [] or isinstance(target, str) or name in target:
        return True
    patterns = config.get("layers_pattern") or []
    expressions = [
        rf"(?:^|.*?\.){p}\.(\d+)\." for p in ([patterns] if isinstance(patterns, str) else patterns)
    ]
    for expression in expressions or [r".*?\.[^.]*\.(\d+)\."]:
        if match := re.match(expression, name):
            return int(match[1]) in ([layers] if isinstance(layers, int) else layers)
    return False


def _matches(names: str | Sequence[str], path: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(named(name, path) for name in names)


def _saved_names(model: nn.Module, config: Mapping[str, Any]) -> list[str]:
    """The wholly trained modules by PEFT's rules: all whose names end in one of its names, dot or no dot."""
    ends = tuple(config.get("modules_to_save") or ())
    found = [name for name, _ in model.named_modules() if name and ends and name.endswith(ends)]
    if config.get("ensure_weight_tying"):
        shared = [p for p in owners(model).values() if any(inside(name, found) for name in p)]
        found += [name for paths in shared for name in paths if not inside(name, found)]
    return [name for name in found if not inside(name, set(found) - {name})]


def _columns(model: nn.Module, name: str) -> int:
    """D of an embedding or a head."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]


def _untied(model: nn.Module, saved_names: Sequence[str], tensors: Mapping[str, Tensor]) -> list[str]:
    """Saved modules whose weight is shared in the base model but that the adapter trained apart.

    That is what PEFT does with tied embeddings unless it is told `ensure_weight_tying`.
    """

    def apart(paths: Sequence[str]) -> bool:
        values = [tensors.get(f"{path}.weight") for path in paths]
        first = values[0]
        return first is None or not all(value is not None and torch.equal(value, first) for value in values)

    groups = [paths for paths in owners(model).values() if len(paths) > 1]
    return [path for paths in groups if apart(paths) for path in paths if path in saved_names]
