"""What a way to store a frozen weight in few bits must offer, and a weight that is stored so.

A scheme is one file in this folder: a `@settings` class with two functions, from a weight to a few plain tensors
and back. Plain tensors, so that a weight can be moved, written to a file or cut for several ranks like any other.
Decoding is exact: the same parts give the same bits on every device and by every path.

Shape suffixes: M outputs, K inputs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from luthier.errors import ModelError

CHUNK = 1 << 20
"""Weights that are encoded at once, so that what is made on the way stays small."""


class Scheme:
    """How weights are stored. Subclasses are frozen `@settings` classes: their fields are their configuration."""

    def encode(self, weight_MK: Tensor) -> dict[str, Tensor]:
        """The weight as plain tensors, by name. It may have any float dtype; the parts lie on its device."""
        raise NotImplementedError

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        """Writes the weight into `out_MK` (any float dtype, any row stride) and returns it."""
        raise NotImplementedError

    def rounded(self, weight_MK: Tensor, out_MK: Tensor) -> Tensor:
        """Writes what the weight decodes to once it is stored into `out_MK`, and returns that."""
        return self.decode(self.encode(weight_MK), out_MK)

    def error(self) -> float:
        """Upper bound of |decoded - weight| / |weight| (Euclidean) for normally distributed weights."""
        raise NotImplementedError

    def bits(self) -> float:
        """Bits that a weight takes, with its share of what else is stored, in a matrix that is not tiny."""
        raise NotImplementedError

    def why_not(self, num_out: int, num_in: int) -> str | None:
        """Why a weight of this shape cannot be stored so, in a few words; None if it can."""
        return None

    def why_no_rows(self, num_in: int) -> str | None:
        """Why single rows of so many weights cannot be decoded apart (`rows`), in a few words; None if they can."""
        return None

    def rows(self, parts: Mapping[str, Tensor], index: slice | Tensor, num_out: int) -> dict[str, Tensor]:
        """The parts of some rows of a weight that has `num_out` of them, from which these rows decode to the same bits.

        `index`: a slice, whose parts are views, or numbers of rows [N]. Here all parts belong to rows.
        """
        return {name: rows_of_part(part, index, num_out) for name, part in parts.items()}


@dataclass(frozen=True)
class Stored:
    """A frozen weight [M, K] as a scheme stores it."""

    scheme: Scheme
    parts: Mapping[str, Tensor]
    shape: tuple[int, int]
    dtype: torch.dtype
    """What products with it are computed in."""

    requires_grad: ClassVar[bool] = False

    def write(self, out_MK: Tensor) -> Tensor:
        """Decodes it into `out_MK` (any row stride) and returns that."""
        return self.scheme.decode(self.parts, out_MK)

    def weight(self) -> Tensor:
        """The decoded weight, a new tensor."""
        return self.write(torch.empty(self.shape, dtype=self.dtype, device=self.device))

    def rows(self, index: slice | Tensor) -> "Stored":
        """Some of its rows, stored: those of a slice, which share memory with it, or those numbered in [N]."""
        parts = self.scheme.rows(self.parts, index, self.shape[0])
        places = range(*index.indices(self.shape[0])) if isinstance(index, slice) else index
        return Stored(self.scheme, parts, (len(places), self.shape[1]), self.dtype)

    @property
    def device(self) -> torch.device:
        """Where its parts lie."""
        return next(iter(self.parts.values())).device

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())


def store(scheme: Scheme, weight_MK: Tensor, dtype: torch.dtype | None = None) -> Stored:
    """The weight as the scheme stores it; products with it are computed in `dtype`, by default its own.

    Raises:
        ModelError: the scheme cannot store a weight of this shape.
    """
    num_out, num_in = weight_MK.shape
    if why := scheme.why_not(num_out, num_in):
        raise ModelError(f"A weight of shape [{num_out}, {num_in}] cannot be stored: {why}.")
    parts = scheme.encode(weight_MK.detach())
    return Stored(scheme, parts, (num_out, num_in), dtype or weight_MK.dtype)


def row_chunks(weight_MK: Tensor) -> Iterator[slice]:
    """Rows of the weight, as many at a time as one chunk has room for."""
    step = max(1, CHUNK // max(1, weight_MK.shape[1]))
    for start in range(0, len(weight_MK), step):
        yield slice(start, start + step)


def rows_of_part(part: Tensor, index: slice | Tensor, num_out: int) -> Tensor:
    """What of a part belongs to some rows, where all of it belongs to rows in their order."""
    each = part.unflatten(0, (num_out, -1))
    if isinstance(index, slice):
        return each[index].flatten(0, 1)
    if part.element_size() == 1 and part.is_floating_point():  # torch gathers no 8-bit floats
        return each.view(torch.uint8).index_select(0, index).flatten(0, 1).view(part.dtype)
    return each.index_select(0, index).flatten(0, 1)
