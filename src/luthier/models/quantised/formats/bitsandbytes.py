"""bitsandbytes: NF4 and FP4 with or without double quantisation (arXiv:2305.14314), and LLM.int8() (arXiv:2208.07339).

In 4 bits `weight` holds the codes in any shape, `weight.absmax` and `weight.quant_map` what decodes them,
`weight.nested_*` what decodes absmax, and `weight.quant_state.bitsandbytes__nf4` the rest as JSON. In 8 bits `weight`
is int8 and `SCB` the largest magnitude of each row.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.kernels.nf4 import NESTED_BLOCK
from luthier.kernels.packed.vectorwise import Vectorwise
from luthier.kernels.quant.fp4 import FP4
from luthier.kernels.quant.nf4 import NF4
from luthier.models.quantised.formats.base import Format, Weight, need, unfit

METHODS = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")
SCHEMES: dict[str, Any] = {"nf4": NF4, "fp4": FP4}
STATE = "weight.quant_state.bitsandbytes__"


class _BitsAndBytes(Format):
    marks = ("weight.absmax", "SCB")
    parts = ("weight", "weight_format")

    def __init__(self, config: Mapping[str, Any]):
        eight = config.get("load_in_8bit") or config.get("_load_in_8bit")
        self.about = f"bitsandbytes {'int8' if eight else config.get('bnb_4bit_quant_type', '4 bits')}"

    def weight(self, name: str, found: Mapping[str, Tensor]) -> Weight:
        if "SCB" in found:
            codes_MK, largest_M = need(name, found, "weight", "SCB")
            if codes_MK.dtype != torch.int8 or codes_MK.dim() != 2 or len(codes_MK) != largest_M.numel():
                raise unfit(name, f"int8 codes {list(codes_MK.shape)}, {largest_M.numel()} scales")
            parts = {"codes": codes_MK, "largest": largest_M.flatten()}
            return Weight(Vectorwise(), parts, (codes_MK.shape[0], codes_MK.shape[1]))
        return _four_bits(name, found)


def _four_bits(name: str, found: Mapping[str, Tensor]) -> Weight:
    codes, absmax, table = need(name, found, "weight", "weight.absmax", "weight.quant_map")
    key = next((key for key in found if key.startswith(STATE)), STATE + "nf4")
    state = json.loads(bytes(need(name, found, key)[0].view(torch.uint8).numpy()).decode())
    if state["quant_type"] not in SCHEMES:
        raise ModelError(
            f"{name} is stored as {state['quant_type']!r}, which is not read here: only nf4 and fp4 are."
        )
    num_out, num_in = state["shape"]
    codes = codes.contiguous().view(torch.uint8).flatten()
    if 2 * codes.numel() != num_out * num_in or num_in % 2:
        raise unfit(name, f"{codes.numel()} bytes for a weight of {num_out} by {num_in}")
    nested = "weight.nested_absmax" in found
    if nested and state["nested_blocksize"] != NESTED_BLOCK:
        raise unfit(name, f"scales of scales in blocks of {state['nested_blocksize']}, not {NESTED_BLOCK}")
    parts = {"codes": codes.view(num_out, num_in // 2), "absmax": absmax, "table": table.float()}
    if nested:
        scale, second = need(name, found, "weight.nested_absmax", "weight.nested_quant_map")
        mean = torch.tensor(float(state["nested_offset"]))
        parts |= {"absmax_table": second.float(), "absmax_scale": scale.float(), "absmax_mean": mean}
    scheme = SCHEMES[state["quant_type"]](double=nested, block=state["blocksize"])
    return Weight(scheme, parts, (num_out, num_in))


def read(config: Mapping[str, Any]) -> Format:
    """Everything that is not a tensor stands beside the tensors."""
    return _BitsAndBytes(config)
