"""A model that others stored in few bits, as it lies in its folder: found by its config.json, read one by one."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.kernels.quant.base import Stored
from luthier.models.quantised.formats import find_format
from luthier.models.quantised.formats.base import Format, Weight
from luthier.models.quantised.reader import LazyTensor, lazy_tensors

KEYS = ("quantization_config", "compression_config")
LEFT_TO_TRANSFORMERS = ("mxfp4",)
"""Formats of stacked experts, whose weights are no linear layers: transformers decodes them itself."""


@dataclass(frozen=True)
class PackedModel:
    """The weights of a model's files."""

    format: Format
    weights: Mapping[str, Mapping[str, LazyTensor]]
    """The tensors of each stored weight by their short names, by the name of its module on disk."""
    plain: Mapping[str, LazyTensor]
    """All other tensors by name."""

    def weight(self, name: str) -> Weight:
        """The weight of a module, read from its file.

        Raises:
            ModelError: its tensors are incomplete or do not fit each other.
        """
        return self.format.weight(name, {short: lazy[...] for short, lazy in self.weights[name].items()})

    def decoded(self, name: str, dtype: torch.dtype) -> Tensor:
        """The weight [M, K] as it decodes."""
        return self.stored(name, dtype).weight()

    def stored(self, name: str, dtype: torch.dtype) -> Stored:
        """The weight for products in `dtype`."""
        return self.weight(name).stored(dtype)


def quantisation_on_disk(folder: Path) -> dict[str, Any] | None:
    """What config.json says of weights in few bits; None if there are none, or transformers reads them."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever builds the model says what is wrong with it
    for part in (config, config.get("text_config") or {}):
        for key in KEYS:
            if (found := part.get(key)) and found.get("quant_method") not in LEFT_TO_TRANSFORMERS:
                return (
                    {"quant_method": "compressed-tensors", **found} if key == "compression_config" else found
                )
    return None


def packed_model(folder: Path) -> PackedModel | None:
    """The model in a folder, if its weights are stored in few bits; only headers of files are read.

    Raises:
        ModelError: the format is not known, or its files are no safetensors.
    """
    config = quantisation_on_disk(folder)
    if config is None:
        return None
    kind = find_format(config, folder)
    lazy = lazy_tensors(folder)
    if lazy is None:
        raise ModelError(
            f"the model in {folder} is stored as {kind.about}, but not in safetensors files, which is all that is "
            "read of such models. Name another copy of it, or the model that it was made from."
        )
    found, left_out = kind.groups(lazy)
    if not found:
        raise ModelError(
            f"the config.json in {folder} says that the model is stored as {kind.about}, but its files hold no such "
            "weight. Take quantization_config out of config.json if they are plain."
        )
    weights = {
        name: {short: lazy[full] for short, full in parts.items()} for name, parts in sorted(found.items())
    }
    taken = left_out.union(*(parts.values() for parts in found.values()))
    return PackedModel(kind, weights, {name: tensor for name, tensor in lazy.items() if name not in taken})


def unpacked_tensors(packed: PackedModel, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """All tensors as a plain model has them, one after the other, stored weights decoded and in `dtype`."""
    for name, lazy in packed.plain.items():
        yield name, lazy[...]
    for name in packed.weights:
        yield f"{name}.weight", packed.decoded(name, dtype)
