"""Weights of a GGUF file in a folder of the cache, their blocks as they are in the file (`models/gguf_packed.py`).

A weight of the type Q4_K is the one tensor MODULE.gguf_Q4_K, uint8 [M, bytes of a row].
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from luthier.kernels.packed.gguf import Gguf
from luthier.models.quantised.formats.base import Format, Weight

METHODS = ("gguf",)
MARK = "gguf_"


class _Gguf(Format):
    parts = ()

    def __init__(self, types: Mapping[str, tuple[int, int]]):
        self.types = types
        self.marks = tuple(f"{MARK}{kind}" for kind in types)
        self.about = f"gguf {', '.join(sorted(types))}"

    def weight(self, name: str, found: Mapping[str, Tensor]) -> Weight:
        ((short, blocks),) = found.items()
        kind = short.removeprefix(MARK)
        size, num_bytes = self.types[kind]
        num_out, row_bytes = blocks.shape
        return Weight(
            Gguf(kind, size, num_bytes), {"blocks": blocks}, (num_out, row_bytes // num_bytes * size)
        )


def read(config: Mapping[str, Any]) -> Format:
    """The types with the weights and the bytes of their blocks."""
    return _Gguf({kind: (int(size), int(num_bytes)) for kind, (size, num_bytes) in config["types"].items()})
