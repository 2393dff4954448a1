"""GGUF files as they are: a folder in the cache in which linear layers keep the blocks of the file.

Which tensor of the file becomes which weight, and in what order its rows are (llama.cpp sorts those of queries and keys
anew), is not taken from a table of names: the file is unpacked as ever (`models/gguf.py`), and a weight of the unpacked
model is the tensor whose decoded rows it consists of. So what is kept in few bits is what would be trained beside
otherwise, by construction. Weights that are no tensor's rows (experts that are joined) stay unpacked.
"""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.kernels.packed.gguf import Gguf
from luthier.models.gguf import convert_gguf
from luthier.models.quantised.formats.gguf import MARK
from luthier.models.quantised.reader import LazyTensor, lazy_tensors
from luthier.models.quantised.shards import write_shards
from luthier.places import cache_folder
from luthier.runs.atomic import atomic_folder

PLAIN = ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")
LAYOUT = 1
"""Raise when what is written changes, so that older folders are not used."""


def pack_gguf(file: Path) -> Path:
    """The folder with this file's model, its linear layers in the file's own blocks; made once and kept.

    Raises:
        ModelError: the file cannot be read, or holds no weight in few bits.
    """
    plain = convert_gguf(file)
    folder = cache_folder("gguf-packed", f"{plain.name}-{LAYOUT}")
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    blocks, types = _tensors_of(file)
    lazy = lazy_tensors(plain)
    assert lazy is not None, "it was written as safetensors"
    with atomic_folder(folder, replace=False) as partial:
        for one in plain.iterdir():
            if one.is_file() and one.suffix != ".safetensors" and not one.name.endswith(".index.json"):
                shutil.copyfile(one, partial / one.name)
        write_shards(_matched(lazy, blocks, types), partial)
        config: dict[str, Any] = json.loads((plain / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = {"quant_method": "gguf", "types": types}
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def _tensors_of(file: Path) -> tuple[dict[str, tuple[str, np.ndarray]], dict[str, tuple[int, int]]]:
    """The matrices in few bits with their types, by name, still in the file, and the sizes of the types' blocks."""
    from gguf import GGML_QUANT_SIZES, GGUFReader

    found, types = {}, {}
    for tensor in GGUFReader(file).tensors:
        kind = tensor.tensor_type.name
        if kind not in PLAIN and tensor.data.ndim == 2:
            found[tensor.name] = kind, tensor.data
            types[kind] = tuple(GGML_QUANT_SIZES[tensor.tensor_type])
    if not found:
        raise ModelError(
            f"{file.name} holds no weights in few bits, so model.unpack: false would keep nothing. Leave it out."
        )
    return found, types


def _matched(
    lazy: dict[str, LazyTensor], blocks: dict[str, tuple[str, np.ndarray]], types: dict[str, tuple[int, int]]
) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the packed folder."""
    by_rows: dict[bytes, list[str]] = defaultdict(list)
    for name, (kind, rows) in blocks.items():
        by_rows[_key(_row_hashes(_decoded(kind, torch.tensor(rows), types[kind])))].append(name)
    for name, tensor in lazy.items():
        value = tensor[...]
        hashes = _row_hashes(value) if name.endswith(".weight") and value.dim() == 2 else []
        sources = by_rows.get(_key(hashes), []) if hashes else []
        if not sources:
            yield name, value
            continue
        kind, in_file = blocks[sources.pop() if len(sources) > 1 else sources[0]]
        rows = torch.tensor(in_file)
        places: dict[bytes, list[int]] = defaultdict(list)
        for place, row in enumerate(_row_hashes(_decoded(kind, rows, types[kind]))):
            places[row].append(place)
        order = torch.tensor([places[row].pop() for row in hashes])
        yield f"{name.removesuffix('.weight')}.{MARK}{kind}", rows[order]


def _decoded(kind: str, rows: Tensor, sizes: tuple[int, int]) -> Tensor:
    size, num_bytes = sizes
    out = torch.empty(len(rows), rows.shape[1] // num_bytes * size, dtype=torch.bfloat16)
    return Gguf(kind, size, num_bytes).decode({"blocks": rows}, out)


def _row_hashes(weight_MK: Tensor) -> list[bytes]:
    bytes_M = weight_MK.bfloat16().contiguous().view(torch.uint8).numpy()
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in bytes_M]


def _key(rows: list[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(sorted(rows)), digest_size=16).digest()
