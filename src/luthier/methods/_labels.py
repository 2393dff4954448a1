"""Answers that are labelled good or bad, each on its own: counts and metrics that such methods have in common.

Shape suffixes: Q sequences.
"""

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.methods import _sequences

METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "logps/chosen",
    "logps/rejected",
    "count/chosen",
    "count/rejected",
)
PER = {f"{name}/{kind}": f"count/{kind}" for name in ("rewards", "logps") for kind in ("chosen", "rejected")}
"""Rewards and log-probabilities are means over their own kind."""


def good_and_bad(batch: Batch) -> tuple[Tensor, Tensor]:
    """Which sequences are labelled good and which bad, [Q] each; padding is neither."""
    label_Q, real_Q = batch.columns["label"], _sequences.real(batch)
    return real_Q & (label_Q > 0.5), real_Q & (label_Q <= 0.5)


def metrics(reward_Q: Tensor, logp_Q: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Sums over the good and over the bad answers, and how many there are."""
    found = {}
    for kind, mask_Q in zip(("chosen", "rejected"), good_and_bad(batch), strict=True):
        found[f"rewards/{kind}"] = _sequences.total(reward_Q.detach(), mask_Q)
        found[f"logps/{kind}"] = _sequences.total(logp_Q.detach(), mask_Q)
        found[f"count/{kind}"] = mask_Q.sum().to(reward_Q.dtype)
    return found


def with_margin(means: dict[str, float]) -> dict[str, float]:
    """With the difference of the rewards of good and bad answers, if the step had both."""
    if not {"rewards/chosen", "rewards/rejected"} <= means.keys():
        return means
    return means | {"rewards/margins": means["rewards/chosen"] - means["rewards/rejected"]}


def shared(value: Tensor | float, batch: Batch, like: Tensor) -> Tensor:
    """A number of the whole step as a metric: so large a sum that division by the count gives it back."""
    return torch.as_tensor(value).to(like) * _sequences.real(batch).sum()
