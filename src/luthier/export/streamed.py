"""A safetensors file that is written tensor by tensor: of all its tensors, one is in memory at a time.

The format is eight bytes with the length of a header, the header as JSON (each tensor's type, shape and place), and the
tensors' bytes one after another, those of the widest types first, so that each lies at a multiple of its own width.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0",
}  # fmt: skip
TYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.dtype.itemsize


def write_streamed(
    path: Path, planned: Sequence[Planned], tensor_of: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes the file.

    Args:
        planned: its tensors, in any order.
        tensor_of: gives the tensor of a name, of the planned type and shape; asked once for each.
        metadata: texts for the header.
    """
    order = sorted(planned, key=lambda one: (-one.dtype.itemsize, one.name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for one in order:
        offsets = [place, place + one.size]
        header[one.name] = {"dtype": NAMES[one.dtype], "shape": list(one.shape), "data_offsets": offsets}
        place = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for one in order:
            tensor = tensor_of(one.name)
            assert tensor.dtype == one.dtype and tuple(tensor.shape) == one.shape, one.name
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del tensor  # before the next one is made
