"""AWQ (arXiv:2306.00978): integers of 4 bits in groups of inputs, in the layout `gemm` of AutoAWQ.

qweight [K, M/8]   eight outputs to a word, in the order 0 2 4 6 1 3 5 7 from the lowest bits
qzeros  [G, M/8]   zero points in the same way
scales  [G, M]     fp16
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.kernels.packed.affine import Affine
from luthier.kernels.packed.bits import apart, as_bytes, joined
from luthier.models.quantised.formats.base import Format, Weight, need, unfit

METHODS = ("awq",)
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class _Awq(Format):
    marks = ("qweight",)
    parts = ("qzeros", "scales")

    def __init__(self, group: int):
        self.about = f"awq, 4 bits, groups of {group}"

    def weight(self, name: str, found: Mapping[str, Tensor]) -> Weight:
        words, zeros, scale_GM = need(name, found, "qweight", "qzeros", "scales")
        zero_GM, (num_in, num_out) = _in_order(zeros), (len(words), words.shape[1] * 8)
        if scale_GM.shape != zero_GM.shape or scale_GM.shape[1] != num_out or num_in % len(scale_GM):
            raise unfit(
                name,
                f"{num_in} inputs, {num_out} outputs, scales {list(scale_GM.shape)}, zeros {list(zero_GM.shape)}",
            )
        codes = joined(_in_order(words).T, 4)
        parts = {"codes": codes, "scale": scale_GM.T.contiguous(), "zero": zero_GM.T.contiguous()}
        return Weight(Affine(4), parts, (num_out, num_in))


def _in_order(words: Tensor) -> Tensor:
    """The codes of each word, in the order of the outputs."""
    mixed = apart(as_bytes(words), 4).unflatten(1, (-1, 8))
    return mixed[..., torch.tensor(ORDER).argsort()].flatten(1)


def read(config: Mapping[str, Any]) -> Format:
    """Raises ModelError for the layouts of single kernels."""
    kind, bits = str(config.get("version") or "gemm").lower(), int(config.get("bits", config.get("w_bit", 4)))
    if kind != "gemm" or bits != 4:
        raise ModelError(
            f"the model is stored as awq of {bits} bits in the layout {kind!r}, which is not read here: 4 bits in "
            "the layout gemm are. Name another copy of the model, or the model that it was made from."
        )
    return _Awq(int(config.get("group_size", config.get("q_group_size", 128))))
