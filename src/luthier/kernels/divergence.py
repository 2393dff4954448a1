"""How far a student's distribution is from a teacher's: the generalised Jensen-Shannon divergence (arXiv:2306.13649).

    beta 0          KL(p ‖ q)                                forward: the student covers all that the teacher says
    beta 1          KL(q ‖ p)                                reverse: the student keeps to what the teacher says
    0 < beta < 1    beta KL(p ‖ m) + (1 - beta) KL(q ‖ m)    m = beta p + (1 - beta) q

p is the teacher's distribution, q the student's, both softmax(logits / temperature). Near its ends the middle formula
is beta times the forward one and 1 - beta times the reverse one; the ends themselves are not scaled so.

Here are formulas on log-probabilities of the same outcomes, all at once; `teacher.py` brings them to a head without
ever holding all logits. `elasticities` are what a hand-written backward pass needs: e_v = q_v · dD/dq_v, up to a
multiple of q_v that no softmax can tell. The gradient of the logits follows from them:

    dD/ds_v = (e_v - q_v Σ_u e_u) / temperature

Shape suffixes: R rows, V outcomes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOWEST = -1e4
"""Log-probabilities below count as this: a forbidden token (-inf) is as good as impossible, but has no 0 · inf."""


@dataclass(frozen=True)
class Divergence:
    """Which divergence.

    Args:
        beta: 0 forward KL, 1 reverse KL, between them the mixture.
        temperature: divides the logits of both.
    """

    beta: float = 0.0
    temperature: float = 1.0

    def values(self, teacher_RV: Tensor, student_RV: Tensor) -> Tensor:
        """The divergence of each row, [R], from log-probabilities, differentiable in both."""
        p, q = teacher_RV.exp(), student_RV.exp()
        if self.beta == 0:
            return (p * (teacher_RV - student_RV)).sum(-1)
        if self.beta == 1:
            return (q * (student_RV - teacher_RV)).sum(-1)
        mixed_RV = self._mixed(p, q)
        forward_R = (p * (teacher_RV - mixed_RV)).sum(-1)
        return self.beta * forward_R + (1 - self.beta) * (q * (student_RV - mixed_RV)).sum(-1)

    def elasticities(self, teacher_RV: Tensor, student_RV: Tensor) -> Tensor:
        """q_v · dD/dq_v, [R, V], up to a multiple of q_v."""
        if self.beta == 0:
            return -teacher_RV.exp()
        q = student_RV.exp()
        if self.beta == 1:
            return q * (student_RV - teacher_RV)
        return (1 - self.beta) * q * (student_RV - self._mixed(teacher_RV.exp(), q))

    def _mixed(self, p: Tensor, q: Tensor) -> Tensor:
        """log m; where both are 0 it is only finite, for it is multiplied by 0."""
        mixed = self.beta * p + (1 - self.beta) * q
        return mixed.clamp(min=torch.finfo(p.dtype).tiny).log()


@dataclass(frozen=True)
class SortedDistance:
    """How far two distributions over *different* outcomes are apart: each sorted, the likeliest first, and compared
    place by place (universal logit distillation, arXiv:2402.12030).

        Σ_i |p_(i) - q_(i)|

    This is the Wasserstein-1 distance when every outcome costs the same to move to. The first `k` of each are compared
    one by one, all others together: a lower bound, and exact where no distribution has more than k outcomes. A line
    of the teacher that says nothing (no probability at all) is at distance 0.

    Args:
        k: how many.
        temperature: divides the logits of both.
    """

    k: int = 256
    temperature: float = 1.0

    def values(self, teacher_RV: Tensor, student_RV: Tensor) -> Tensor:
        """The distance of each row, [R], from log-probabilities in order, differentiable in both."""
        p, q = teacher_RV.exp(), student_RV.exp()
        return torch.where(p.detach().sum(-1) > 0.5, (p - q).abs().sum(-1), 0.0)

    def elasticities(self, teacher_RV: Tensor, student_RV: Tensor) -> Tensor:
        """q_v · dD/dq_v, [R, V]; where the teacher says nothing it is q_v, which no softmax can tell from 0."""
        q = student_RV.exp()
        return q * torch.sign(q - teacher_RV.exp())


Measure = Divergence | SortedDistance


def log_softmax(shaped_RV: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of shaped logits at a temperature, none below `LOWEST`."""
    return torch.log_softmax(shaped_RV / temperature, -1).clamp(min=LOWEST)


def bucketed(logp_RV: Tensor, ids_RK: Tensor) -> Tensor:
    """Log-probabilities of the tokens `ids` and, behind them, of all others together, [R, K + 1]."""
    others_R1 = logp_RV.scatter(1, ids_RK, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logp_RV.gather(1, ids_RK), others_R1], 1).clamp(min=LOWEST)


def reference(
    teacher_RV: Tensor, student_RV: Tensor, measure: Divergence, ids_RK: Tensor | None = None
) -> Tensor:
    """The definition on shaped logits, [R]: over all outcomes, or over those in `ids` and the rest as one more."""
    logs = [log_softmax(logits, measure.temperature) for logits in (teacher_RV, student_RV)]
    if ids_RK is not None:
        logs = [bucketed(logp, ids_RK) for logp in logs]
    return measure.values(logs[0], logs[1])


def cases() -> list[dict[str, Any]]:
    """Small logits (fp64) of teacher and student, far and near, for every formula and some temperatures."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for beta in (0.0, 0.3, 0.5, 1.0):
        for temperature, size in ((1.0, 1.0), (0.7, 3.0), (2.0, 0.01)):
            teacher_RV = 2 * torch.randn(4, 11, generator=generator, dtype=torch.float64)
            noise_RV = torch.randn(4, 11, generator=generator, dtype=torch.float64)
            made.append(
                {
                    "teacher_RV": teacher_RV,
                    "student_RV": teacher_RV + size * noise_RV,
                    "measure": Divergence(beta, temperature),
                }
            )
    return made
