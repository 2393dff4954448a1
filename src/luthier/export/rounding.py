"""A merged weight in the dtype that it is stored in, so that what an adapter learned is not rounded away.

The weights of most base models are numbers of bfloat16, and an adapter changes most of them by less than half of the
distance to the next one. Rounded to the nearest, W + s·B·A is then W again: the adapter is weakened, everywhere in the
same sense, and no average over many weights makes up for it. So each sum becomes one of its two neighbours by chance,
as near as it is to it (`optim/stochastic.py`): single weights are a little less exact, while their sums, which are
what a layer computes, have the whole update in them. The draws depend on nothing but the tensor's name, so a merge
gives the same bytes each time.

Chance doubles the variance of what is rounded off. So a weight whose update the nearest numbers keep nearly whole gets
these: updates that are large against the steps, and bases whose weights are no numbers of the target (decoded ones).
float16 has eight times finer steps than bfloat16 and is always rounded to the nearest.
"""

from zlib import crc32

import torch
from torch import Tensor

from luthier.optim.stochastic import rounded_by_chance

KEPT = 0.99
"""Of an update; less is made up for by chance. A hundredth of what an adapter does is far below what rounding adds."""
PART = 1 << 18
"""Numbers that are worked on at a time: beside a merged weight nothing of its size is in memory."""


def rounded_sum(total: Tensor, base: Tensor, name: str) -> Tensor:
    """Base weight and update in the dtype of the base.

    Args:
        total: their sum, in at least fp32.
        base: the weight as the model on disk has it.
        name: the tensor's, which the draws depend on.
    """
    rounded = total.to(base.dtype).contiguous()
    if base.dtype is not torch.bfloat16 or kept(total, rounded, base) >= KEPT:
        return rounded
    generator = torch.Generator(total.device).manual_seed(crc32(name.encode()))
    for wide, out in zip(_parts(total), _parts(rounded), strict=True):
        out.copy_(rounded_by_chance(wide.float().contiguous(), generator))
    return rounded


def kept(total: Tensor, rounded: Tensor, base: Tensor) -> float:
    """How much of the update is in the rounded sum: the change's component along it, 1 if there is no update."""
    found = square = 0.0
    for wide, now, before in zip(_parts(total), _parts(rounded), _parts(base), strict=True):
        old = before.float()
        update = wide - old
        square += float(update.square().sum())
        found += float(((now.float() - old) * update).sum())
    return found / square if square else 1.0


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Rows of it, as views."""
    if not tensor.dim() or not tensor.numel():
        return (tensor,)
    return tensor.split(max(1, PART // tensor[0].numel()))
