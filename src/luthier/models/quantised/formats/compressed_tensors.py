"""compressed-tensors, what LLM Compressor writes: integers of 4 or 8 bits, packed or whole, and 8-bit floats.

    pack-quantized   weight_packed [M, K·b/32], codes end to end; weight_shape; zero points packed down the outputs
    int-quantized    weight [M, K] int8
    float-quantized  weight [M, K] E4M3
    naive-quantized  either of the last two

each with weight_scale: one, [M, 1], [M, G], or a block's. How activations would be rounded in serving is not used.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.kernels.packed.affine import Affine, halves_swapped
from luthier.kernels.packed.bits import apart, as_bytes
from luthier.models.quantised.formats.base import Format, Weight, need, unfit
from luthier.models.quantised.formats.fp8 import eight_bit_floats, square

METHODS = ("compressed-tensors", "compressed_tensors")
KINDS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
BITS = (1, 2, 4, 8)


class _CompressedTensors(Format):
    marks = ("weight_scale",)
    parts = ("weight", "weight_packed", "weight_shape", "weight_zero_point", "weight_g_idx")
    unused = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale")

    def __init__(self, kind: str, groups: Mapping[str, Any]):
        self.weights = [args for group in groups.values() if (args := group.get("weights")) is not None]
        widths = sorted({int(args.get("num_bits", 8)) for args in self.weights})
        self.sides = {square(args.get("block_structure")) for args in self.weights} - {None}
        self.bits = widths[0] if len(widths) == 1 else None
        self.about = f"compressed-tensors {kind}, {' and '.join(map(str, widths))} bits"

    def weight(self, name: str, found: Mapping[str, Tensor]) -> Weight:
        if "weight_packed" in found:
            return self._packed(name, found)
        codes_MK, scale = need(name, found, "weight", "weight_scale")
        if codes_MK.dtype == torch.float8_e4m3fn:
            return eight_bit_floats(name, codes_MK, scale, next(iter(self.sides), None))
        if codes_MK.dtype != torch.int8:
            raise unfit(name, f"codes of the type {codes_MK.dtype}, not int8 or float8_e4m3fn")
        zero = found.get("weight_zero_point")
        codes = (codes_MK.to(torch.int16) + 128).to(torch.uint8)
        zero_MG = None if zero is None or not zero.any() else (zero.to(torch.int16) + 128).to(torch.uint8)
        return _grouped(
            name, codes, (codes.shape[0], codes.shape[1]), 8, scale, zero_MG, found.get("weight_g_idx")
        )

    def _packed(self, name: str, found: Mapping[str, Tensor]) -> Weight:
        words, shape, scale = need(name, found, "weight_packed", "weight_shape", "weight_scale")
        num_out, num_in = (int(size) for size in shape)
        bits = self.bits or 32 * words.shape[1] // num_in
        codes = as_bytes(words)[:, : -(-num_in * bits // 8)].contiguous()
        zero_MG = None
        if (packed := found.get("weight_zero_point")) is not None:
            zero_MG = apart(as_bytes(packed.T), bits).T[:num_out]
        return _grouped(name, codes, (num_out, num_in), bits, scale, zero_MG, found.get("weight_g_idx"))


def _grouped(
    name: str,
    codes: Tensor,
    shape: tuple[int, int],
    bits: int,
    scale: Tensor,
    zero_MG: Tensor | None,
    group_of: Tensor | None,
) -> Weight:
    """A weight of unsigned codes; without zero points these are in the middle."""
    num_out, num_in = shape
    if bits not in BITS or codes.shape != (num_out, -(-num_in * bits // 8)):
        raise unfit(name, f"codes {list(codes.shape)} of {bits} bits for a weight of {num_out} by {num_in}")
    scale_MG = scale.reshape(-1, scale.shape[-1] if scale.dim() > 1 else 1)
    scale_MG = scale_MG.expand(num_out, -1).contiguous() if len(scale_MG) in (1, num_out) else scale_MG
    num_groups = scale_MG.shape[1]
    if len(scale_MG) != num_out or (num_in % num_groups and group_of is None):
        raise unfit(name, f"scales {list(scale.shape)} for a weight of {num_out} by {num_in}")
    parts = {"codes": codes, "scale": scale_MG}
    if group_of is not None and int(group_of.min()) >= 0:
        parts["group_of"] = group_of.to(torch.int32)
    if zero_MG is not None:
        parts["zero"] = zero_MG.reshape(-1, zero_MG.shape[-1]).expand(num_out, num_groups).contiguous()
        return Weight(Affine(bits), parts, shape)
    if bits == 4:
        parts["codes"] = halves_swapped(codes)
    return Weight(Affine(bits, 2 ** (bits - 1)), parts, shape)


def read(config: Mapping[str, Any]) -> Format:
    """Raises ModelError for sparse weights and 4-bit floats."""
    groups = config.get("config_groups") or {}
    kinds = {str(group.get("format") or config.get("format")) for group in groups.values()}
    kinds |= {str(config.get("format"))} if not kinds or config.get("format") in KINDS else set()
    if other := sorted(kinds - {*KINDS}):
        raise ModelError(
            f"the model is stored by compressed-tensors as {', '.join(other)}, which is not read here: "
            f"{', '.join(KINDS)} are. Name another copy of the model, or the model that it was made from."
        )
    sparse = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparse not in ("dense", None):
        raise ModelError(
            f"the model's weights are stored sparse by compressed-tensors ({sparse}), which is not read here. Name "
            "the model that it was made from."
        )
    return _CompressedTensors(" and ".join(sorted(kinds)), groups)
