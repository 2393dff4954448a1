"""Tensors, as they come, written to the safetensors files of a model's folder."""

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from luthier.models.quantised.reader import INDEX

SHARD = 2 << 30
"""Bytes of tensors in a file, about."""


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Writes files of about `SHARD` bytes and their index; no more than one of them is in memory."""
    weight_map: dict[str, str] = {}
    held: dict[str, Tensor] = {}

    def put_away() -> None:
        name = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
        save_file(held, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(held, name))
        held.clear()

    for name, tensor in tensors:
        if held and sum(one.nbytes for one in held.values()) + tensor.nbytes > SHARD:
            put_away()
        held[name] = tensor.contiguous()
    put_away()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
