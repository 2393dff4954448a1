"""The types of a GGUF file that the `gguf` package can write, and in which type each tensor is kept.

Matrices take the file's type. Vectors, and the small matrices that choose experts, stay in 32 bit: they are next to
nothing in size and everything passes through them. Token embeddings and the head of a file in 4 or 5 bits take 8, as
they are read a row at a time or decide every token (llama.cpp's own quantiser gives them 6 for the same reason). A
matrix whose rows do not divide into blocks is kept in 16 bit.
"""

from dataclasses import dataclass

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

TABLES = ("token_embd.weight", "output.weight")
SMALL = (".ffn_gate_inp.weight", "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class FileType:
    """A type of file: its number, and the types of matrices and of token tables."""

    number: LlamaFileType
    matrices: GGMLQuantizationType
    tables: GGMLQuantizationType

    @property
    def at_least_16(self) -> "FileType":
        """The same, but 16 bits for matrices that would have fewer."""
        many = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
        kind = self.matrices if self.matrices in many else GGMLQuantizationType.F16
        return FileType(self.number, kind, kind)

    def of(self, name: str, shape: tuple[int, ...]) -> GGMLQuantizationType:
        """The type of a tensor by its name in the file and its shape."""
        if len(shape) < 2 or name.endswith(SMALL):
            return GGMLQuantizationType.F32
        kind = self.tables if name in TABLES else self.matrices
        return kind if shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else GGMLQuantizationType.F16


def _file_type(name: str, tables: GGMLQuantizationType | None = None) -> FileType:
    kind = GGMLQuantizationType[name]
    number = LlamaFileType.ALL_F32 if name == "F32" else LlamaFileType[f"MOSTLY_{name}"]
    return FileType(number, kind, tables or kind)


EIGHT = GGMLQuantizationType.Q8_0
TYPES = {
    **{name.lower(): _file_type(name) for name in ("F32", "F16", "BF16", "Q8_0")},
    **{name.lower(): _file_type(name, EIGHT) for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1")},
}
"""By the name that follows `gguf:`."""


def size_in_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Of a tensor in the file."""
    block, size = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * size


def encoded(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """The values as they stand in the file, by the `gguf` package's own rounding. values: fp32, of any shape.

    Raises OverflowError if a value is too large for 16 bit.
    """
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(gguf.quants.quantize(values, kind))
    if kind is GGMLQuantizationType.F16 and not np.isfinite(found).all():
        raise OverflowError(f"a value is {np.abs(values).max():.3g}")
    return found
