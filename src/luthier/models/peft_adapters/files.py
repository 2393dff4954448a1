"""Adapters of `peft` on disk: in its own format for whoever loads them, and exactly, for going on."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from luthier.errors import RunError
from luthier.models.adapter_plan import CONFIG_NAME, WEIGHTS_NAME
from luthier.models.peft_adapters.held import NAME, PeftAdapter, own_tensors, peft_of
from luthier.models.peft_adapters.ranks import rank_state, restore_ranks
from luthier.runs.atomic import atomic_write_bytes, atomic_write_text

EXACT = "peft_state.pt"
"""Everything of the adapter bit for bit: peft's own format may leave out what can be made again, or cut ranks off."""


def save_peft(model: nn.Module, folder: Path, *, base_name: str, revision: str | None = None) -> None:
    """Writes the model's adapter so that `peft.PeftModel.from_pretrained` reads it; other files in `folder` stay.

    Raises:
        RunError: the disk cannot be written to.
    """
    from peft import get_peft_model_state_dict

    adapter = _adapter(model)
    config = adapter.model.peft_config[NAME]
    ranks = copy.deepcopy(getattr(config, "rank_pattern", None))
    tensors = get_peft_model_state_dict(adapter.model, save_embedding_layers=False)
    content = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    settings = _settings(config) | {
        "base_model_name_or_path": base_name,
        "revision": revision,
        "inference_mode": True,
    }
    if ranks is not None:
        config.rank_pattern = ranks  # of which peft has changed the names
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / WEIGHTS_NAME, save(content, {"format": "pt"}))
    atomic_write_text(folder / CONFIG_NAME, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def save_exactly(model: nn.Module, folder: Path) -> None:
    """Writes all that a run needs to go on with the adapter bit for bit."""
    tensors = {name: tensor.cpu() for name, tensor in own_tensors(model).items()}
    torch.save({"tensors": tensors, "ranks": rank_state(_adapter(model))}, folder / EXACT)


def load_exactly(model: nn.Module, folder: Path) -> None:
    """Puts the adapter that the model has back as it was when `folder` was written.

    Raises:
        RunError: it is another adapter, or the file cannot be read.
    """
    path = folder / EXACT
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise RunError(
            f"{path} cannot be read ({error}). Remove that checkpoint to use the one before."
        ) from error
    own, saved = own_tensors(model), state["tensors"]
    faults = [name for name in {*own, *saved} if name not in own or name not in saved]
    faults += [name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape]
    if faults:
        raise RunError(
            f"{folder} holds another adapter than this run trains: {', '.join(sorted(faults)[:3])} differ. Use the "
            "section peft that it was saved with."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
    restore_ranks(_adapter(model), state["ranks"])


def _adapter(model: nn.Module) -> PeftAdapter:
    adapter = peft_of(model)
    assert adapter is not None, "the model has an adapter of peft"
    return adapter


def _settings(config: Any) -> dict[str, Any]:
    """peft's settings as JSON can hold them."""
    return {key: _plain(value) for key, value in config.to_dict().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value if value is None or isinstance(value, str | int | float | bool | list) else str(value)
