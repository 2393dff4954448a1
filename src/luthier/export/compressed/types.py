"""How a weight [M, K] is stored, and what config.json says of it.

    int4   codes -8..7 of 4 bits, a scale for 128 inputs of a row            4.13 bits a weight
           (for 64 or 32 where the rows of some layers do not divide)        4.25 or 4.5
    int8   codes -128..127, a scale for each row                            8 bits and a little
    fp8    8-bit floats (E4M3), a scale for each row                        8 bits and a little

    weight = code · scale,    scale = the largest absolute value of the group / the largest code

Codes are the nearest ones, with no other data than the weights, unless a method with data chose others (`gptq.py`).
Servers multiply int4 and int8 with activations in 16 bits; with fp8 they round these, too, each token by itself.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

GROUPS = (128, 64, 32)
"""Inputs that share a scale, the first that divides; servers' fast products with 4 bits know these."""
GROUP = GROUPS[0]
FLOAT8_MOST = 448.0


@dataclass(frozen=True)
class Type:
    """A way of storing linear layers."""

    bits: int
    floats: bool = False
    group: int | None = None
    """Inputs that share a scale; None: all of a row."""

    @property
    def format(self) -> str:
        """compressed-tensors' name."""
        return "float-quantized" if self.floats else "pack-quantized"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of this shape can be stored so."""
        return len(shape) == 2 and shape[1] % (self.group or 32) == 0

    def parts(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Types and shapes of the tensors that take the place of `name.weight`, by name."""
        num_out, num_in = shape
        scales = dtype, (num_out, num_in // self.group if self.group else 1)
        if self.floats:
            return {f"{name}.weight": (torch.float8_e4m3fn, shape), f"{name}.weight_scale": scales}
        return {
            f"{name}.weight_packed": (torch.int32, (num_out, num_in * self.bits // 32)),
            f"{name}.weight_scale": scales,
            f"{name}.weight_shape": (torch.int64, (2,)),
        }

    def fitting(self, shapes: Collection[tuple[int, ...]]) -> "Type":
        """The same with groups that divide the rows of all these weights; itself if there are no such groups."""
        if self.group is None:
            return self
        for group in GROUPS:
            if all(shape[-1] % group == 0 for shape in shapes):
                return replace(self, group=group)
        return self

    @property
    def most(self) -> float:
        """The largest code."""
        return FLOAT8_MOST if self.floats else 2 ** (self.bits - 1) - 1

    def scales(self, weight_MK: Tensor, dtype: torch.dtype) -> Tensor:
        """The scale of each group [M, G], rounded to `dtype`, in fp32: codes are to fit what is stored."""
        num_out, num_in = weight_MK.shape
        grouped_MGk = weight_MK.float().view(num_out, -1, self.group or num_in)
        least = max(1e-10, torch.finfo(dtype).tiny)  # zeros must not get a scale of zero
        return (grouped_MGk.abs().amax(-1) / self.most).clamp(min=least).to(dtype).float()

    def codes(self, values: Tensor, scale: Tensor) -> Tensor:
        """The codes nearest to values, as numbers in the values' type."""
        codes = values / scale
        if self.floats:
            return codes.clamp(-self.most, self.most).to(torch.float8_e4m3fn).to(values.dtype)
        return codes.round().clamp(-self.most - 1, self.most)

    def packed(self, codes_MK: Tensor, scale_MG: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Codes and scales as they are stored, by the tensors' last names."""
        scales = {"weight_scale": scale_MG.to(dtype)}
        if self.floats:
            return {"weight": codes_MK.to(torch.float8_e4m3fn), **scales}
        whole = codes_MK.to(torch.int64) + 2 ** (self.bits - 1)
        return {
            "weight_packed": _packed(whole, self.bits),
            **scales,
            "weight_shape": torch.tensor(codes_MK.shape),
        }

    def nearest(self, weight_MK: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """A weight with each code the nearest, as it is stored."""
        codes_MGk, scale_MG = self._nearest(weight_MK, dtype)
        return self.packed(codes_MGk.view(weight_MK.shape), scale_MG, dtype)

    def decoded(self, weight_MK: Tensor, dtype: torch.dtype) -> Tensor:
        """What that decodes to, in fp32."""
        codes_MGk, scale_MG = self._nearest(weight_MK, dtype)
        return (codes_MGk * scale_MG.unsqueeze(-1)).view(weight_MK.shape)

    def _nearest(self, weight_MK: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scale_MG = self.scales(weight_MK, dtype)
        return self.codes(weight_MK.float().view(*scale_MG.shape, -1), scale_MG.unsqueeze(-1)), scale_MG

    def config(self, ignored: list[str]) -> dict[str, Any]:
        """The section quantization_config. ignored: names of linear layers that stay as they are."""
        strategy = "group" if self.group else "channel"
        weights = {
            "num_bits": self.bits,
            "type": "float" if self.floats else "int",
            "symmetric": True,
            "strategy": strategy,
            "group_size": self.group,
            "dynamic": False,
        }
        activations = {
            "num_bits": 8,
            "type": "float",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": activations if self.floats else None,
            "output_activations": None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": self.format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ignored,
            "kv_cache_scheme": None,
        }


def _packed(codes_MK: Tensor, bits: int) -> Tensor:
    """Unsigned codes end to end in words of 32 bits, the first in the lowest."""
    num_out, num_in = codes_MK.shape
    each = 32 // bits
    words = (codes_MK.view(num_out, num_in // each, each) << (bits * torch.arange(each))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


TYPES = {"int4": Type(4, group=GROUP), "int8": Type(8), "fp8": Type(8, floats=True)}
"""By the name that follows `compressed:`."""
