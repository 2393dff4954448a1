"""What NF4 and FP4 share: blocks of weights as 4-bit codes on a table, and the scale of each block."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from luthier.kernels import nf4
from luthier.kernels.quant.base import Scheme, rows_of_part

Block = Literal[32, 64, 128, 256, 512, 1024]


class FourBits(Scheme):
    """The parts are `codes`, `absmax`, `table`, and with `double` those that decode the scales."""

    values: ClassVar[Sequence[float]]
    most_error: ClassVar[float]
    double: bool
    block: Block

    def encode(self, weight_MK: Tensor) -> dict[str, Tensor]:
        packed = nf4.quantize(weight_MK, double=self.double, block=self.block, values=self.values)
        parts = {"codes": packed.codes, "absmax": packed.absmax, "table": packed.table}
        if packed.nested is not None:
            nested = packed.nested
            parts |= {
                "absmax_table": nested.table,
                "absmax_scale": nested.absmax,
                "absmax_mean": nested.offset,
            }
        return parts

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        nested = None
        if "absmax_table" in parts:
            nested = nf4.Nested(parts["absmax_table"], parts["absmax_scale"], parts["absmax_mean"])
        num_out, num_in = out_MK.shape
        packed = nf4.Packed(
            parts["codes"],
            parts["absmax"],
            parts["table"],
            (num_out, num_in),
            out_MK.dtype,
            nested,
            self.block,
        )
        return nf4.dequantize(packed, out_MK)

    def rows(self, parts: Mapping[str, Tensor], index: slice | Tensor, num_out: int) -> dict[str, Tensor]:
        """Scales that are stored in 8 bits are decoded, for they lie in blocks of their own that rows cut."""
        codes = rows_of_part(parts["codes"], index, num_out)
        absmax = rows_of_part(parts["absmax"], index, num_out)
        if "absmax_table" in parts:
            per_row = len(parts["absmax"]) // num_out
            if isinstance(index, slice):
                index = torch.arange(*index.indices(num_out), device=absmax.device)
            number_NG = index[:, None] * per_row + torch.arange(per_row, device=absmax.device)
            scale = parts["absmax_scale"][number_NG.flatten() // nf4.NESTED_BLOCK]
            absmax = parts["absmax_table"][absmax.long()] * scale + parts["absmax_mean"]
        return {"codes": codes, "absmax": absmax, "table": parts["table"]}

    def why_no_rows(self, num_in: int) -> str | None:
        return (
            f"rows of {num_in} weights hold no whole blocks of {self.block}" if num_in % self.block else None
        )

    def error(self) -> float:
        return self.most_error

    def bits(self) -> float:
        scale = 8 + 32 / nf4.NESTED_BLOCK if self.double else 32
        return 4 + scale / self.block

    def why_not(self, num_out: int, num_in: int) -> str | None:
        return "two inputs share a byte, and their number is odd" if num_in % 2 else None
