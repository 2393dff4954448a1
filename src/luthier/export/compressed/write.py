"""A model folder becomes one whose linear layers are stored in few bits, tensor by tensor."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.export.compressed.types import TYPES, Type
from luthier.export.described import copy_described
from luthier.export.merge import INDEX, Progress, base_shards, empty_model
from luthier.export.streamed import TYPES as DTYPES
from luthier.export.streamed import Planned, write_streamed
from luthier.models.checkpoint_names import checkpoint_names
from luthier.models.lora_targets import output_embeddings
from luthier.runs.atomic import check_room

HIGH = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Made:
    """What was made of a model's weights with the help of data, by their names in the model."""

    parts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Of linear layers, what takes the weight's place, by the tensors' last names."""
    plain: Mapping[str, Tensor] = field(default_factory=dict)
    """Other tensors that changed."""


Maker = Callable[[Path, Type, torch.dtype, Collection[str]], Made]
"""Called with the model's folder, how its linear layers are stored, the type of scales, and these layers' names."""


def write_compressed(
    folder: Path, out: Path, kind: str, *, make: Maker | None = None, progress: Progress | None = None
) -> list[str]:
    """Fills `out` with the model in `folder`; what is not stored in few bits becomes bf16 where it is wider.

    Args:
        kind: one of `TYPES`.
        make: rounds with data; what it does not make is rounded to the nearest.

    Returns the names of linear layers that stay as they are, besides the head.

    Raises:
        ModelError: no linear layer can be stored so.
        RunError: the disk cannot take it.
    """
    shards = base_shards(folder)
    model = empty_model(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), torch.bfloat16)
    dtype = dtype if dtype in HIGH else torch.bfloat16
    on_disk = checkpoint_names(model, [name for names in shards.values() for name in names])
    modules: dict[str, nn.Module] = dict(model.named_modules())
    head = output_embeddings(model)
    linear = [name for name, module in modules.items() if type(module) is nn.Linear and module is not head]
    chosen = TYPES[kind].fitting([_shape(modules[name]) for name in linear])
    fit = {name for name in linear if chosen.fits(_shape(modules[name])) and f"{name}.weight" in on_disk}
    if not fit:
        raise ModelError(f"no linear layer of this model can be stored as {kind}. Export it as merged.")
    named = {on_disk[f"{name}.weight"].removesuffix(".weight"): name for name in fit}
    stay = sorted(set(linear) - fit)
    check_room(out, sum(file.stat().st_size for file in shards))
    made = Made() if make is None else make(folder, chosen, dtype, fit)
    shard = _Shard(
        chosen,
        dtype,
        set(named),
        {name: made.parts[inside] for name, inside in named.items() if inside in made.parts},
        {on_disk[name]: tensor for name, tensor in made.plain.items()},
    )
    places: dict[str, str] = {}
    for done, file in enumerate(shards, 1):
        for name in shard.write(file, out / file.name):
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


@dataclass(frozen=True)
class _Shard:
    """How one file becomes another; weights and tensors by their names on disk."""

    chosen: Type
    dtype: torch.dtype
    named: Collection[str]
    """Linear layers that are stored in few bits."""
    parts: Mapping[str, Mapping[str, Tensor]]
    plain: Mapping[str, Tensor]

    def write(self, source: Path, target: Path) -> list[str]:
        """Writes one file; returns the names of its tensors."""
        with safe_open(source, framework="pt") as file:
            made: dict[str, str] = {}
            planned: list[Planned] = []
            for name in file.keys():  # noqa: SIM118
                told = file.get_slice(name)
                base, shape = name.removesuffix(".weight"), tuple(told.get_shape())
                if base in self.named:
                    parts = self.chosen.parts(base, shape, self.dtype)
                else:
                    parts = {name: (self._kind(DTYPES[told.get_dtype()]), shape)}
                made |= dict.fromkeys(parts, name)
                planned += [Planned(part, kind, size) for part, (kind, size) in parts.items()]
            small: dict[str, Tensor] = {}  # a weight's parts are not asked for one after another

            def tensor_of(part: str) -> Tensor:
                name = made[part]
                base, told = name.removesuffix(".weight"), file.get_slice(name)
                if base not in self.named:
                    tensor = self.plain[name] if name in self.plain else file.get_tensor(name)
                    return tensor.to(self._kind(DTYPES[told.get_dtype()]))
                if part == f"{base}.weight_shape":
                    return torch.tensor(told.get_shape())
                if part not in small:
                    parts = self.parts.get(base) or self.chosen.nearest(file.get_tensor(name), self.dtype)
                    small[f"{base}.weight_scale"] = parts["weight_scale"]
                    return parts[part.removeprefix(f"{base}.")]
                return small.pop(part)

            write_streamed(target, planned, tensor_of, {"format": "pt"})
        return [one.name for one in planned]

    def _kind(self, stored: torch.dtype) -> torch.dtype:
        """What a tensor becomes that is not stored in few bits."""
        return self.dtype if stored in (torch.float32, torch.float64) else stored


def _shape(module: nn.Module) -> tuple[int, ...]:
    assert isinstance(module, nn.Linear)
    return tuple(module.weight.shape)


def _head(modules: dict[str, nn.Module], head: nn.Module | None) -> list[str]:
    """The head by its name in the model."""
    return [name for name, module in modules.items() if module is head]


def _describe(folder: Path, out: Path, config: dict[str, Any], quantisation: dict[str, Any]) -> None:
    """Everything but weights, and config.json with what was done."""
    copy_described(folder, out)
    text = json.dumps({**config, "quantization_config": quantisation}, indent=2)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")
