"""Which modules the trainable tokens of a PEFT adapter belong to, and how many rows these must have."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from luthier.models.lora_targets import input_embeddings, inside, output_embeddings, owners

Group = tuple[tuple[str, ...], tuple[int, ...]]
"""Modules that share the rows of some tokens, and these tokens."""

SETTING = "trainable_token_indices"


def rows_key(names: Sequence[str]) -> str:
    """Name of the tensor with the rows of a group, without PEFT's prefix: the first module has it."""
    return f"{names[0]}.token_adapter.trainable_tokens_delta"


def token_groups(model: nn.Module, config: Mapping[str, Any], saved: Sequence[str]) -> list[Group]:
    """The modules with trainable tokens by PEFT's rules, without those that are trained whole (`saved`).

    A list of tokens means the input embeddings; a mapping names modules by the ends of their names. What shares
    its weights with the input embeddings goes with them, unless it is named with other tokens.
    """
    setting = config.get(SETTING)
    if not setting:
        return []
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    inputs = _name_of(model, input_embeddings(model))
    wanted: dict[str, tuple[int, ...]] = {}
    for key, tokens in (setting if isinstance(setting, Mapping) else {inputs: setting}).items():
        wanted |= {name: tuple(tokens) for name in names if name.endswith(key) and not inside(name, saved)}
    partners = next((paths for paths in owners(model).values() if inputs in paths), [])
    tied = [path for path in partners if path != inputs and not inside(path, saved)]
    groups: list[Group] = []
    for name, tokens in wanted.items():
        if name == inputs:
            groups.append(((name, *(path for path in tied if wanted.get(path, tokens) == tokens)), tokens))
        elif not (name in tied and wanted.get(inputs) == tokens):
            groups.append(((name,), tokens))
    return groups


def rows_needed(model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """Rows that the model's embeddings must have for an adapter; fewer than they have if it adds none."""
    setting = config.get(SETTING) or []
    listed = setting.values() if isinstance(setting, Mapping) else [setting]
    needed = [max(tokens, default=-1) + 1 for tokens in listed]
    for module in (input_embeddings(model), output_embeddings(model)):
        weight = tensors.get(f"{_name_of(model, module)}.weight")
        needed += [len(weight)] if weight is not None else []
    return max(needed, default=0)


def _name_of(model: nn.Module, module: nn.Module | None) -> str:
    """The module's name; empty if there is no such module."""
    found = (name for name, each in model.named_modules(remove_duplicate=False) if each is module)
    return next(found, "") if module is not None else ""
