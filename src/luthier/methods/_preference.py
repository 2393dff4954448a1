"""Losses on preference pairs as functions of their log-ratios, and what they have in common.

h = log π(y|x) - log π_ref(y|x), summed over the answer's tokens, for the chosen (h_c) and the rejected answer (h_r);
f maps h to a score (`divergence`), D = f(h_c) - f(h_r); σ is the logistic function, e the share of labels that are
taken to be wrong, |y| an answer's length.

Shape suffixes: N predictions, Q sequences, P pairs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.data.batch import Batch
from luthier.methods import _sequences

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


@dataclass(frozen=True)
class Pairs:
    """The pairs of a batch, chosen and rejected, and what a formula is tuned by."""

    ratio_c: Tensor
    """h of the chosen answers, [P]; of the rejected ones in `ratio_r`, and so on."""
    ratio_r: Tensor
    score_c: Tensor
    """f(h), [P]."""
    score_r: Tensor
    length_c: Tensor
    """|y|, [P]."""
    length_r: Tensor
    beta: float
    smoothing: float
    """e."""
    tau: float
    """Temperature of discopop."""

    @property
    def z(self) -> Tensor:
        """beta · D, [P]."""
        return self.beta * (self.score_c - self.score_r)

    @property
    def mean_gap(self) -> Tensor:
        """f(h_c) / |y_c| - f(h_r) / |y_r|, [P]."""
        return self.score_c / self.length_c - self.score_r / self.length_r


def score(ratio: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """f(h), by the f-divergence that holds the policy to the reference (arXiv:2309.16240); 0 or constant at h = 0.

    reverse_kl: h; forward_kl: -e^-h; js: log σ(h); alpha: e^((a-1)h) / (a-1). Constants cancel in D.
    """
    if divergence == "forward_kl":
        return -torch.expm1(-ratio)
    if divergence == "js":
        return math.log(2) + F.logsigmoid(ratio)
    if divergence == "alpha" and alpha != 1:
        return torch.expm1(((alpha - 1) * ratio).clamp(max=80)) / (alpha - 1)
    return ratio


def logistic(z: Tensor, smoothing: float = 0.0) -> Tensor:
    """-(1-e)·log σ(z) - e·log σ(-z)."""
    return -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)


def _exo(p: Pairs) -> Tensor:
    e = p.smoothing
    good = p.z.sigmoid() * (F.logsigmoid(p.z) - math.log1p(-e))
    return good + (-p.z).sigmoid() * (F.logsigmoid(-p.z) - math.log(e))


def _nca(p: Pairs) -> Tensor:
    c, r = p.beta * p.ratio_c, p.beta * p.ratio_r
    return -F.logsigmoid(c) - 0.5 * (F.logsigmoid(-c) + F.logsigmoid(-r))


def _robust(p: Pairs) -> Tensor:
    kept, flipped = (1 - p.smoothing) * F.logsigmoid(p.z), p.smoothing * F.logsigmoid(-p.z)
    return (flipped - kept) / (1 - 2 * p.smoothing)


def _sppo(p: Pairs) -> Tensor:
    half = 0.5 / p.beta
    return (p.ratio_c - half) ** 2 + (p.ratio_r + half) ** 2


def _apo_zero(p: Pairs) -> Tensor:
    return (-p.beta * p.ratio_c).sigmoid() + (p.beta * p.ratio_r).sigmoid()


def _apo_down(p: Pairs) -> Tensor:
    return (p.beta * p.ratio_c).sigmoid() + (-p.beta * (p.ratio_c - p.ratio_r)).sigmoid()


def _discopop(p: Pairs) -> Tensor:
    gate = (p.z / p.tau).sigmoid()
    return (1 - gate) * logistic(p.z) + gate * (-p.z).exp()


FORMULAS: dict[str, Callable[[Pairs], Tensor]] = {
    "sigmoid": lambda p: logistic(p.z, p.smoothing),
    "hinge": lambda p: (1 - p.z).relu(),
    "ipo": lambda p: (p.mean_gap - 0.5 / p.beta) ** 2,
    "exo_pair": _exo,
    "nca_pair": _nca,
    "robust": _robust,
    "bco_pair": lambda p: -F.logsigmoid(p.beta * p.ratio_c) - F.logsigmoid(-p.beta * p.ratio_r),
    "sppo_hard": _sppo,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sigmoid_norm": lambda p: logistic(p.beta * p.mean_gap, p.smoothing),
}
"""Each of them per pair, [P]."""


def on_policy_weight(logp_N: Tensor, log_squares_N: Tensor, batch: Batch) -> Tensor:
    """How much each pair looks like the model's own answers, without a gradient, [P] (WPO, arXiv:2406.11827, eq. 2).

    exp of the mean over an answer's tokens of log p - log Σ p², times the same of the other answer. The second
    term, over the vocabulary, makes the mean weight of a token that the model draws 1.
    """
    mean_Q = _sequences.sums((logp_N - log_squares_N).detach(), batch) / _sequences.lengths(batch)
    chosen_P, rejected_P = _sequences.pairs(mean_Q)
    return (chosen_P + rejected_P).exp()


def count_pairs(batch: Batch) -> float:
    """Rows of the batch, each a pair."""
    return float(_sequences.real(batch).sum()) / 2


def metrics(reward_c: Tensor, reward_r: Tensor, logp_Q: Tensor, mask_P: Tensor) -> dict[str, Tensor]:
    """Sums over the pairs of what people watch, under TRL's names."""
    logp_c, logp_r = _sequences.pairs(logp_Q)
    values = (
        reward_c,
        reward_r,
        (reward_c > reward_r).to(reward_c.dtype),
        reward_c - reward_r,
        logp_c,
        logp_r,
    )
    return {n: _sequences.total(v.detach(), mask_P) for n, v in zip(METRICS, values, strict=True)}
