"""GPTQ (arXiv:2210.17323): integers of 2, 3, 4 or 8 bits in groups of inputs, as GPTQModel and AutoGPTQ write them.

qweight [K·b/32, M]   codes down the inputs, end to end, lowest bit first; those of 3 bits go on over words
qzeros  [G, M·b/32]   zero points across the outputs in the same way; the first version of the format: less 1
scales  [G, M]        fp16
g_idx   [K]           the group of each input; with `desc_act` in any order
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.kernels.packed.affine import Affine, halves_swapped
from luthier.kernels.packed.bits import apart, as_bytes
from luthier.models.quantised.formats.base import Format, Weight, need, unfit

METHODS = ("gptq",)
BITS = (2, 3, 4, 8)


class _Gptq(Format):
    marks = ("qweight",)
    parts = ("qzeros", "scales", "g_idx")

    def __init__(self, bits: int, group: int, second: bool):
        self.bits, self.second = bits, second
        self.about = f"gptq, {bits} bits" + (f", groups of {group}" if group > 0 else "")

    def weight(self, name: str, found: Mapping[str, Tensor]) -> Weight:
        words, zeros, scale_GM = need(name, found, "qweight", "qzeros", "scales")
        codes = as_bytes(words.T)
        num_out, num_in = len(codes), codes.shape[1] * 8 // self.bits
        num_groups = len(scale_GM)
        zero_GM = apart(as_bytes(zeros), self.bits)
        if scale_GM.shape != (num_groups, num_out) or zero_GM.shape != scale_GM.shape:
            raise unfit(
                name, f"{num_out} outputs, scales {list(scale_GM.shape)}, zeros {list(zero_GM.shape)}"
            )
        if not self.second:
            zero_GM = zero_GM + 1 & 2**self.bits - 1
        parts: dict[str, Tensor] = {"codes": codes, "scale": scale_GM.T.contiguous()}
        group_of = found.get("g_idx")
        if group_of is None:
            group_of = torch.arange(num_in) // -(-num_in // num_groups)
        if len(group_of) != num_in or not 0 <= int(group_of.min()) <= int(group_of.max()) < num_groups:
            raise unfit(name, f"{num_in} inputs, {len(group_of)} of them in {num_groups} groups")
        runs = num_in % num_groups == 0
        if not runs or not torch.equal(group_of.long(), torch.arange(num_in) // (num_in // num_groups)):
            parts["group_of"] = group_of.to(torch.int32)
        middle = int(zero_GM.flatten()[0]) if bool((zero_GM == zero_GM.flatten()[0]).all()) else None
        if middle is None:
            parts["zero"] = zero_GM.T.contiguous()
        elif self.bits == 4:
            parts["codes"] = halves_swapped(codes)
        return Weight(Affine(self.bits, middle), parts, (num_out, num_in))


def read(config: Mapping[str, Any]) -> Format:
    """Raises ModelError for other numbers of bits and layouts of single kernels."""
    bits, kind = int(config.get("bits", 4)), str(config.get("checkpoint_format") or "gptq")
    if bits not in BITS or kind not in ("gptq", "gptq_v2"):
        raise ModelError(
            f"the model is stored as gptq of {bits} bits in the format {kind!r}, which is not read here: 2, 3, 4 "
            "and 8 bits in the formats gptq and gptq_v2 are. Save it as gptq_v2 with the tool that made it, or "
            "name another model."
        )
    return _Gptq(bits, int(config.get("group_size", -1)), kind == "gptq_v2")
