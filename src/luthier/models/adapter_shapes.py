"""Which tensors an adapter's settings ask for, by PEFT's rules: their names in the files and their shapes.

Shape suffixes: E experts, K inputs, M outputs, R rank.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.models.lora_experts import shape_of
from luthier.models.lora_targets import inside, is_linear, named

PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"
"""DoRA's lengths in PEFT's files."""
BIAS = "base_layer.bias"
"""The trained bias of an adapted layer in PEFT's files."""
PARAMETERS = "target_parameters"
"""PEFT's setting for tensors that are adapted without a module of their own, such as stacked experts."""


def can_adapt(module: nn.Module) -> bool:
    """Whether a low-rank update can be read for this module."""
    return is_linear(module) or isinstance(module, nn.Embedding)


def factor_keys(module: nn.Module, name: str) -> tuple[str, str]:
    """Names of A and B in PEFT's files."""
    if isinstance(module, nn.Embedding):
        return f"{name}.lora_embedding_A", f"{name}.lora_embedding_B"
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


def expert_keys(path: str, tensors: Sequence[str]) -> dict[str, str]:
    """Where the adapter of each stacked tensor of one module stands in PEFT's files: one wrapped around the other, the
    last one outside."""
    return {name: path + ".base_layer" * (len(tensors) - 1 - place) for place, name in enumerate(tensors)}


def per_module(config: Mapping[str, Any], patterns: str, default: str, name: str) -> Any:
    """A module's rank or alpha: of the first pattern that matches its name, else the one for all."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return config.get(default, 8)


def expected_shapes(
    model: nn.Module, config: Mapping[str, Any], linear_names: Sequence[str], saved_names: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name in linear_names:
        module = model.get_submodule(name)
        weight = module.weight
        assert isinstance(weight, Tensor)
        outputs, inputs = (
            weight.shape if not isinstance(module, Conv1D | nn.Embedding) else weight.shape[::-1]
        )
        rank = per_module(config, "rank_pattern", "r", name)
        of_a, of_b = factor_keys(module, name)
        shapes[of_a], shapes[of_b] = (rank, inputs), (outputs, rank)
        if config.get("use_dora"):
            shapes[f"{name}.{MAGNITUDE}"] = (outputs,)
    for name in saved_names:
        weights = model.get_submodule(name).state_dict().items()
        shapes.update({f"{name}.{part}": tuple(weight.shape) for part, weight in weights})
    return shapes


def target_experts(model: nn.Module, config: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, float]]]:
    """Rank and alpha of the tensors that `target_parameters` means, by the full name of their module."""
    found: dict[str, dict[str, tuple[int, float]]] = {}
    for target in config.get(PARAMETERS) or ():
        for path, module in model.named_modules():
            for name, weight in module.named_parameters(recurse=False):
                if weight.dim() == 3 and named(target, f"{path}.{name}"):
                    found.setdefault(path, {})[name] = (0, 0.0)
    for path, settings in found.items():
        order = [
            name for name, _ in model.get_submodule(path).named_parameters(recurse=False) if name in settings
        ]
        found[path] = {
            name: (
                per_module(config, "rank_pattern", "r", f"{path}.{name}"),
                per_module(config, "alpha_pattern", "lora_alpha", f"{path}.{name}"),
            )
            for name in order
        }
    return found


def shapes_of_experts(
    model: nn.Module, path: str, settings: Mapping[str, tuple[int, float]]
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, key in expert_keys(path, list(settings)).items():
        experts, outputs, inputs = shape_of(model.get_submodule(path), name)
        rank = settings[name][0]
        shapes[f"{key}.lora_A.weight"] = (rank * experts, inputs)
        shapes[f"{key}.lora_B.weight"] = (outputs, rank * experts)
    return shapes


def trained_biases(
    model: nn.Module, config: Mapping[str, Any], adapted: Sequence[str], saved: Sequence[str]
) -> dict[str, str]:
    """Key in PEFT's files of each bias that is trained, by the full name of its module."""
    kind = config.get("bias") or "none"
    if kind == "none":
        return {}
    have = {name for name, module in model.named_modules() if module._parameters.get("bias") is not None}
    found = {name: f"{name}.{BIAS}" for name in adapted if name in have}
    if kind == "all":
        found |= {name: f"{name}.bias" for name in sorted(have - {*found}) if not inside(name, saved)}
    return found
