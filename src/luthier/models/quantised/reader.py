"""Tensors of safetensors files, read one by one when they are asked for.

A mapped file (what the safetensors library gives) counts towards the memory of the process page by page until all of
it is closed, so a model of which only 4 bits a weight are kept would still show in full at its peak.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that lies in a file. `lazy[...]` reads it, as transformers asks for it."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    end: int

    def __getitem__(self, index: Any) -> Tensor:
        size = self.end - self.start
        raw = torch.empty(size, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            view, read = memoryview(raw.numpy().data), 0
            while read < size and (count := file.readinto(view[read:])):
                read += count
        if read < size:
            raise ModelError(
                f"{self.path} is shorter than its header says. Download or save the model again."
            )
        return raw.view(DTYPES[self.kind]).view(self.shape)[index]

    def get_dtype(self) -> str:
        """The element type, in the words of safetensors."""
        return self.kind

    def get_shape(self) -> list[int]:
        """The shape."""
        return list(self.shape)


def lazy_tensors(folder: Path) -> dict[str, LazyTensor] | None:
    """All tensors of the safetensors files in a model's folder by name; None if it has no such files.

    Raises:
        ModelError: a file is missing or damaged, or holds a type that is not known.
    """
    index = folder / INDEX
    try:
        names = [WEIGHTS]
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        elif not (folder / WEIGHTS).is_file():
            return None
        return {name: lazy for file in names for name, lazy in _of_file(folder / file)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the weights in {folder} cannot be read ({error}). Download or save them again."
        ) from error


def _of_file(path: Path) -> Iterator[tuple[str, LazyTensor]]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= path.stat().st_size:
            raise ValueError(f"{path.name} does not begin as a safetensors file")
        header = json.loads(file.read(size))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} in {path.name} has the type {entry['dtype']}")
        start, end = entry["data_offsets"]
        yield name, LazyTensor(path, entry["dtype"], tuple(entry["shape"]), 8 + size + start, 8 + size + end)
