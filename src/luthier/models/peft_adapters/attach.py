"""Adapters of `peft` put on a model: new ones by their settings, or those of a folder."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.errors import ConfigError, ModelError
from luthier.models.adapter_files import attach_adapter
from luthier.models.lora import adapters
from luthier.models.peft_adapters.held import NAME, PeftAdapter, hold, peft_of
from luthier.models.peft_adapters.prompt import Prompt, States

CONFIG_NAME = "adapter_config.json"
FAR = 1 << 30
"""A number of steps that no run has, until it is known how many it has."""


def peft_type_of(folder: Path) -> str | None:
    """The type of the adapter in a folder, if Luthier has not got it itself."""
    try:
        found = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever reads it next says what is wrong
    kind = found.get("peft_type") if isinstance(found, dict) else None
    return kind.lower() if isinstance(kind, str) and kind != "LORA" else None


def apply_peft(model: PreTrainedModel, kind: str, options: Mapping[str, Any], *, seed: int) -> PeftAdapter:
    """Puts a new adapter on the model, in place, and freezes all else. What is drawn for it, `seed` decides.

    Raises:
        ConfigError: settings that do not go together, or do not fit the model, in peft's words.
    """
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    _refuse_adapted(model)
    base = _identities(model)
    given = dict(options)
    if kind == "adalora" and given.get("total_step") is None:
        given["total_step"] = FAR
    with torch.random.fork_rng([]), _told(kind):
        torch.manual_seed(seed % 2**63)
        settings = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind.upper()]](task_type="CAUSAL_LM", **given)
        around = get_peft_model(model, settings)
    return _held(model, kind, around, base)


def attach_any(model: PreTrainedModel, folder: Path) -> None:
    """Puts the adapter in a folder on the model, in place, whether Luthier computes it itself or peft does."""
    if peft_type_of(folder) is None:
        attach_adapter(model, folder)
    else:
        attach_peft(model, folder)


def attach_peft(model: PreTrainedModel, folder: Path) -> PeftAdapter:
    """Puts the adapter in a folder on the model, in place; nothing is trainable.

    Raises:
        ModelError: peft is not installed, or the adapter does not fit the model.
    """
    kind = peft_type_of(folder) or "adapter"
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError(
            f"{folder} holds an adapter of the type {kind}, which needs the library peft; pip install 'luthier[peft]'"
        ) from error
    _refuse_adapted(model)
    base = _identities(model)
    try:
        around = PeftModel.from_pretrained(model, str(folder), is_trainable=False, local_files_only=True)
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise ModelError(
            f"the adapter in {folder} cannot be put on this model: {_first_line(error)}"
        ) from error
    adapter = _held(model, kind, around, base)
    model.requires_grad_(False)
    return adapter


def _held(model: PreTrainedModel, kind: str, around: Any, base: frozenset[int]) -> PeftAdapter:
    """The adapter as the model remembers it, with what it trains outside the model's modules brought into them."""
    prompt = None
    if around.peft_config[NAME].is_prompt_learning:
        prompt = _prompt(model, around)
        model.add_module("prompt_encoder", around.prompt_encoder[NAME].float())
    else:
        present = {id(parameter) for parameter in model.parameters()}
        for name, child in around.base_model.named_children():
            if child is not model and any(
                id(p) not in present for p in child.parameters() if p.requires_grad
            ):
                model.add_module(f"peft_{name}", child)
    adapter = PeftAdapter(kind, around, prompt, base)
    hold(model, adapter)
    return adapter


def _prompt(model: PreTrainedModel, around: Any) -> Prompt:
    """What the adapter lets stand before the tokens, made anew in each pass from what is trained."""

    def make() -> Tensor | States:
        found = around.get_prompt(1)
        if isinstance(found, Tensor):
            return found[0]
        return [(layer.keys, layer.values) for layer in found.layers]

    embed = model.get_input_embeddings()
    assert isinstance(embed, nn.Module)
    return Prompt(model.base_model, embed, make, around.peft_config[NAME].num_virtual_tokens)


def _identities(model: nn.Module) -> frozenset[int]:
    return frozenset(id(tensor) for tensor in (*model.parameters(), *model.buffers()))


def _refuse_adapted(model: nn.Module) -> None:
    if peft_of(model) is not None or adapters(model):
        raise ModelError("This model already has an adapter. Merge it first, or load the model anew.")


@contextmanager
def _told(kind: str) -> Iterator[None]:
    """Turns what peft says of wrong settings into an error for people."""
    try:
        yield
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ImportError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise ConfigError(
            f"peft cannot make the adapter {kind} on this model: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
