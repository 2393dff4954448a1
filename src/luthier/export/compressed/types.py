"""How a weight [M, K] is stored, and what config.json says of it.

    int4   codes -8..7 of 4 bits, a scale for 128 inputs of a row            4.13 bits a weight
    int8   codes -128..127, a scale for each row                            8 bits and a little
    fp8    8-bit floats (E4M3), a scale for each row                        8 bits and a little

    weight = code · scale,    scale = the largest absolute value of the group / the largest code

Codes are rounded to the nearest, with no other data than the weights. Servers multiply int4 and int8 with activations
in 16 bits; with fp8 they round these, too, each token by itself.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GROUP = 128
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

    def stored(self, name: str, weight_MK: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors by name. The scale is rounded to `dtype` first, so that the codes fit what is stored."""
        values = weight_MK.float()
        num_out, num_in = values.shape
        grouped_MGk = values.view(num_out, -1, self.group or num_in)
        most = FLOAT8_MOST if self.floats else 2 ** (self.bits - 1) - 1
        scale_MG = (grouped_MGk.abs().amax(-1) / most).clamp(min=1e-10).to(dtype)
        codes = grouped_MGk / scale_MG.float().unsqueeze(-1)
        if self.floats:
            floats = codes.clamp(-most, most).to(torch.float8_e4m3fn).view(num_out, num_in)
            return {f"{name}.weight": floats, f"{name}.weight_scale": scale_MG}
        half = 2 ** (self.bits - 1)
        whole = (codes.round().clamp(-half, half - 1) + half).to(torch.int64).view(num_out, num_in)
        return {
            f"{name}.weight_packed": _packed(whole, self.bits),
            f"{name}.weight_scale": scale_MG,
            f"{name}.weight_shape": torch.tensor([num_out, num_in]),
        }

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
