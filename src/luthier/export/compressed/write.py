"""A model folder becomes one whose linear layers are stored in few bits, tensor by tensor."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.export.compressed.types import TYPES, Type
from luthier.export.merge import INDEX, NOT_COPIED, Progress, base_shards, empty_model
from luthier.export.streamed import TYPES as DTYPES
from luthier.export.streamed import Planned, write_streamed
from luthier.models.checkpoint_names import checkpoint_names
from luthier.models.lora_targets import output_embeddings
from luthier.runs.atomic import check_room

HIGH = (torch.bfloat16, torch.float16)


def write_compressed(folder: Path, out: Path, kind: str, *, progress: Progress | None = None) -> list[str]:
    """Fills `out` with the model in `folder`; what is not stored in few bits becomes bf16 where it is wider.

    Returns the names of linear layers that stay as they are, besides the head.

    Raises:
        ModelError: no linear layer can be stored so.
        RunError: the disk cannot take it.
    """
    chosen = TYPES[kind]
    shards = base_shards(folder)
    model = empty_model(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), torch.bfloat16)
    dtype = dtype if dtype in HIGH else torch.bfloat16
    on_disk = checkpoint_names(model, [name for names in shards.values() for name in names])
    modules: dict[str, nn.Module] = dict(model.named_modules())
    head = output_embeddings(model)
    linear = [name for name, module in modules.items() if type(module) is nn.Linear and module is not head]
    fit = {name for name in linear if chosen.fits(_shape(modules[name])) and f"{name}.weight" in on_disk}
    if not fit:
        raise ModelError(f"no linear layer of this model can be stored as {kind}. Export it as merged.")
    named = {on_disk[f"{name}.weight"].removesuffix(".weight"): name for name in fit}
    stay = sorted(set(linear) - fit)
    check_room(out, sum(file.stat().st_size for file in shards))
    places: dict[str, str] = {}
    for done, file in enumerate(shards, 1):
        for name in _shard(file, out / file.name, chosen, set(named), dtype):
            places[name] = file.name
        if progress is not None:
            progress(done, len(shards), file.name)
    _describe(
        folder,
        out,
        {**config, "dtype": str(dtype).removeprefix("torch.")},
        chosen.config([*stay, *_head(modules, head)]),
    )
    if (folder / INDEX).is_file():
        (out / INDEX).write_text(
            json.dumps({"metadata": {}, "weight_map": places}, indent=2), encoding="utf-8"
        )
    return stay


def _shard(source: Path, target: Path, chosen: Type, named: set[str], dtype: torch.dtype) -> list[str]:
    """Writes one file; returns the names of its tensors."""
    with safe_open(source, framework="pt") as file:
        made: dict[str, str] = {}
        planned: list[Planned] = []
        for name in file.keys():  # noqa: SIM118
            told = file.get_slice(name)
            base, shape = name.removesuffix(".weight"), tuple(told.get_shape())
            if base in named:
                parts = chosen.parts(base, shape, dtype)
            else:
                stored = DTYPES[told.get_dtype()]
                parts = {name: (dtype if stored in (torch.float32, torch.float64) else stored, shape)}
            made |= dict.fromkeys(parts, name)
            planned += [Planned(part, kind, size) for part, (kind, size) in parts.items()]

        def tensor_of(part: str) -> Tensor:
            name = made[part]
            weight = file.get_tensor(name)
            base = name.removesuffix(".weight")
            if base in named:
                return chosen.stored(base, weight, dtype)[part]
            return weight.to(dtype) if weight.dtype in (torch.float32, torch.float64) else weight

        write_streamed(target, planned, tensor_of, {"format": "pt"})
    return [one.name for one in planned]


def _shape(module: nn.Module) -> tuple[int, ...]:
    assert isinstance(module, nn.Linear)
    return tuple(module.weight.shape)


def _head(modules: dict[str, nn.Module], head: nn.Module | None) -> list[str]:
    """The head by its name in the model."""
    return [name for name, module in modules.items() if module is head]


def _describe(folder: Path, out: Path, config: dict[str, Any], quantisation: dict[str, Any]) -> None:
    """Everything but weights, and config.json with what was done."""
    skipped = {file for pattern in NOT_COPIED for file in folder.glob(pattern)}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file not in skipped:
            shutil.copyfile(file, out / file.name)
    text = json.dumps({**config, "quantization_config": quantisation}, indent=2)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")
