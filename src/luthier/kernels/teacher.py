"""Log-probabilities of N predictions and their divergence from a teacher's, without a [T, V] tensor of either.

    logp_n = log softmax(shape(hidden_n · Wᵀ + b))[target_n]
    div_n  = D(softmax(teacher's logits_n / temperature), softmax(shape(...) / temperature))

A chunk of predictions at a time: both logits are formed, compared (`divergence.py`) and forgotten. The backward pass
forms them again; `linear_loss` forms the gradient in the forward pass, for losses Σ c_n · logp_n + d_n · div_n with c
and d known beforehand. Only the student gets gradients.

A teacher is known in one of four ways:

- `TeacherHead`: its hidden states and head, the usual case.
- `TeacherLogits`: all its logits, of models with a head of their own making.
- `TopTokens`: its likeliest tokens, kept on disk. Then the outcomes are these k tokens and *all others together as one
  more*. That is a true divergence of the coarser distributions: 0 only where these agree, never more than the full
  one, and the full one for k = V. Scaling the k tokens to a sum of 1 instead would leave the student free to put any
  mass on the others.
- `SortedTokens`: how likely its likeliest tokens are, but not which, of a teacher with another vocabulary. They are
  compared with the student's likeliest in the same order (`SortedDistance`).

Vocabularies of different lengths (padded differently) are compared over what both have.

Shape suffixes: N predictions, D hidden size of either, V vocabulary, C predictions of one chunk, B rows of a block,
K tokens of a teacher, K1 = K + 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels import divergence
from luthier.kernels.divergence import LOWEST, Divergence, Measure, SortedDistance
from luthier.kernels.head import (
    Gradients,
    HeadWeight,
    chunk_memory,
    chunk_rows,
    chunks,
    raw_logits,
    remember,
    remembered,
    wide,
)
from luthier.kernels.softmax_gradient import LogitShape

# Elements of a block that is widened to fp32 at once; its few temporaries stay in a CPU's last-level cache.
CPU_BLOCK_ELEMENTS = 1 << 20
GPU_BLOCK_ELEMENTS = 1 << 25
PLAIN = LogitShape()


@dataclass(frozen=True)
class TeacherHead:
    """A teacher's hidden states [N, D], output embedding [V, D], bias [V] and shape of logits."""

    hidden_ND: Tensor
    weight_VD: HeadWeight
    bias_V: Tensor | None = None
    shape: LogitShape = PLAIN

    @property
    def vocabulary(self) -> int:
        return len(self.weight_VD)

    def logits(self, rows: slice, memory: list[Tensor]) -> Tensor:
        """Raw logits of some predictions. `memory`: what the last call left, to be written over."""
        hidden_CD = self.hidden_ND[rows]
        if not memory or len(memory[0]) < len(hidden_CD):
            memory[:] = [hidden_CD.new_empty(len(hidden_CD), self.vocabulary)]
        return raw_logits(hidden_CD, self.weight_VD, self.bias_V, memory[0])


@dataclass(frozen=True)
class TeacherLogits:
    """All logits of a teacher, [N, V]."""

    logits_NV: Tensor
    shape: LogitShape = PLAIN

    @property
    def vocabulary(self) -> int:
        return self.logits_NV.shape[1]

    def logits(self, rows: slice, memory: list[Tensor]) -> Tensor:
        """The logits of some predictions."""
        return self.logits_NV[rows]


@dataclass(frozen=True)
class TopTokens:
    """A teacher's likeliest tokens [N, K], and their log-probabilities and that of all others together, [N, K1].

    The log-probabilities were taken at the temperature of the divergence.
    """

    ids_NK: Tensor
    logp_NK1: Tensor

    def ids(self, student_RV: Tensor, rows: slice) -> Tensor:
        """The tokens that those of the teacher are compared with, [R, K]: the same ones."""
        return self.ids_NK[rows]


@dataclass(frozen=True)
class SortedTokens:
    """Log-probabilities of a teacher's likeliest tokens, in order, and of all others together, [N, K1].

    A prediction that the teacher does not make has a line of `LOWEST`.
    """

    logp_NK1: Tensor

    def ids(self, student_RV: Tensor, rows: slice) -> Tensor:
        """The tokens that those of the teacher are compared with, [R, K]: the student's likeliest, in order."""
        return student_RV.detach().topk(self.logp_NK1.shape[1] - 1, dim=-1).indices


Teacher = TeacherHead | TeacherLogits | TopTokens | SortedTokens


def reference(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    teacher: Teacher,
    measure: Measure,
    shape: LogitShape,
) -> tuple[Tensor, Tensor]:
    """The definition: all logits at once."""
    return of_logits(F.linear(hidden_ND, weight_VD, bias_V), target_N, teacher, measure, shape)


def of_logits(
    logits_NV: Tensor,
    target_N: Tensor,
    teacher: Teacher,
    measure: Measure,
    shape: LogitShape | None = None,
) -> tuple[Tensor, Tensor]:
    """logp and div, [N] each, from all logits of the student; for models that give nothing else."""
    shaped_NV = (shape or PLAIN)(logits_NV)
    logp_N = torch.log_softmax(shaped_NV, -1).gather(1, target_N[:, None])[:, 0]
    if isinstance(teacher, TopTokens | SortedTokens):
        student_NV = torch.log_softmax(shaped_NV / measure.temperature, -1)
        student_NK1 = divergence.bucketed(student_NV, teacher.ids(student_NV, slice(0, len(target_N))))
        return logp_N, measure.values(teacher.logp_NK1.to(student_NK1), student_NK1)
    assert isinstance(measure, Divergence), "only what is sorted is compared in order"
    size = min(teacher.vocabulary, shaped_NV.shape[1])
    teacher_NV = teacher.shape(teacher.logits(slice(0, len(target_N)), []))
    return logp_N, divergence.reference(teacher_NV[:, :size], shaped_NV[:, :size], measure)


def token_divergence(
    hidden_ND: Tensor,
    weight_VD: HeadWeight,
    bias_V: Tensor | None,
    target_N: Tensor,
    teacher: Teacher,
    measure: Measure,
    shape: LogitShape | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """logp and div, [N] each in fp32, differentiable in hidden states, weight and bias."""
    chunk = chunk or chunk_rows(hidden_ND, weight_VD.shape[0])
    work = _Work(target_N, teacher, measure, shape or PLAIN, chunk)
    return _TokenDivergence.apply(hidden_ND, weight_VD, bias_V, work)  # pyright: ignore[reportReturnType]


def linear_loss(
    hidden_ND: Tensor,
    weight_VD: HeadWeight,
    bias_V: Tensor | None,
    target_N: Tensor,
    teacher: Teacher,
    measure: Measure,
    coefficient_N: Tensor,
    of_divergence_N: Tensor,
    shape: LogitShape | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ coefficient · logp + of_divergence · div, and logp and div [N] detached. No product is made twice."""
    chunk = chunk or chunk_rows(hidden_ND, weight_VD.shape[0])
    work = _Work(target_N, teacher, measure, shape or PLAIN, chunk)
    return _LinearLoss.apply(hidden_ND, weight_VD, bias_V, work, coefficient_N, of_divergence_N)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class _Work:
    """What a head is asked for."""

    target_N: Tensor
    teacher: Teacher
    measure: Measure
    shape: LogitShape
    chunk: int

    def chunks(
        self, hidden_ND: Tensor, weight_VD: HeadWeight, bias_V: Tensor | None
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Each chunk's rows, and the raw logits of student and teacher (none of a teacher that is known)."""
        memory_CV, theirs = chunk_memory(hidden_ND, weight_VD, self.chunk), []
        for rows in chunks(len(self.target_N), self.chunk):
            teacher_CV = None
            if not isinstance(self.teacher, TopTokens | SortedTokens):
                teacher_CV = self.teacher.logits(rows, theirs)
            yield rows, raw_logits(hidden_ND[rows], weight_VD, bias_V, memory_CV), teacher_CV

    def blocks(
        self, rows: slice, student_CV: Tensor, teacher_CV: Tensor | None, logz_N3: Tensor, known: bool
    ) -> Iterator["_Block"]:
        """The blocks of a chunk. Log-normalisers are written to `logz_N3`, or read from it if they are known."""
        elements = CPU_BLOCK_ELEMENTS if student_CV.device.type == "cpu" else GPU_BLOCK_ELEMENTS
        size = max(1, elements // student_CV.shape[1])
        for start in range(rows.start, rows.stop, size):
            at = slice(start, min(start + size, rows.stop))
            own = slice(at.start - rows.start, at.stop - rows.start)
            theirs_BV = None if teacher_CV is None else teacher_CV[own]
            yield _Block(self, at, student_CV[own], theirs_BV, logz_N3[at], known)


class _Block:
    """Some rows of a chunk: their log-probabilities in fp32, and what follows from them.

    `logz_B3` are the student's log-normalisers at temperature 1 and at the divergence's, and the teacher's.
    """

    def __init__(
        self,
        work: _Work,
        rows: slice,
        raw_BV: Tensor,
        teacher_BV: Tensor | None,
        logz_B3: Tensor,
        known: bool,
    ):
        self.rows, self.raw_BV, self.shape, self.measure = rows, raw_BV, work.shape, work.measure
        self.target_B1, self.logz_B3, self.known = work.target_N[rows, None], logz_B3, known
        self.shaped_BV = work.shape(raw_BV)
        size = raw_BV.shape[1] if teacher_BV is None else min(raw_BV.shape[1], teacher_BV.shape[1])
        self.is_plain = size == raw_BV.shape[1] and work.measure.temperature == 1
        self._normalise(self.shaped_BV, 0)
        self.student_BV = self._log_softmax(self.shaped_BV[:, :size], 1)
        if isinstance(work.teacher, TopTokens | SortedTokens):
            self.ids_BK = work.teacher.ids(self.student_BV, rows)
            self.outcomes = divergence.bucketed(self.student_BV, self.ids_BK)
            self.teacher = work.teacher.logp_NK1[rows].to(self.outcomes)
        else:
            assert teacher_BV is not None
            self.ids_BK, self.outcomes = None, self.student_BV
            self.teacher = self._log_softmax(work.teacher.shape(teacher_BV[:, :size]), 2)

    def _normalise(self, logits_BV: Tensor, which: int) -> Tensor:
        if not self.known:
            self.logz_B3[:, which] = torch.logsumexp(logits_BV, -1)
        return self.logz_B3[:, which, None]

    def _log_softmax(self, shaped_BV: Tensor, which: int) -> Tensor:
        tempered_BV = shaped_BV if self.measure.temperature == 1 else shaped_BV / self.measure.temperature
        return (tempered_BV - self._normalise(tempered_BV, which)).clamp_(min=LOWEST)

    def values(self) -> tuple[Tensor, Tensor]:
        """logp and div, [B] each."""
        logp_B = (self.shaped_BV.gather(1, self.target_B1) - self.logz_B3[:, :1])[:, 0]
        return logp_B, self.measure.values(self.teacher, self.outcomes)

    def differentiate(self, of_logp_B: Tensor | None, of_divergence_B: Tensor | None) -> None:
        """Puts the gradient of Σ of_logp · logp + of_divergence · div in the place of the raw logits."""
        grad_BV, size = torch.zeros_like(self.shaped_BV), self.student_BV.shape[1]
        q = self.student_BV.exp()
        if of_divergence_B is not None:
            factor_B1 = of_divergence_B[:, None].to(grad_BV.dtype) / self.measure.temperature
            e = self._elasticities()
            torch.mul(e.sub_(q * e.sum(-1, keepdim=True)), factor_B1, out=grad_BV[:, :size])
        if of_logp_B is not None:
            of_logp_B1 = of_logp_B[:, None].to(grad_BV.dtype)
            softmax_BV = q if self.is_plain else (self.shaped_BV - self.logz_B3[:, :1]).exp_()
            grad_BV.addcmul_(softmax_BV, of_logp_B1, value=-1).scatter_add_(1, self.target_B1, of_logp_B1)
        self.raw_BV.copy_(self.shape.backward(grad_BV, self.shaped_BV))

    def _elasticities(self) -> Tensor:
        """q_v · dD/dq_v of every token; what the others have together is dealt out by their shares."""
        e = self.measure.elasticities(self.teacher, self.outcomes)
        if self.ids_BK is None:
            return e
        others_BV = self.student_BV.scatter(1, self.ids_BK, -torch.inf)
        shares_BV = (others_BV - self.outcomes[:, -1:]).exp_()
        return shares_BV.mul_(e[:, -1:]).scatter_(1, self.ids_BK, e[:, :-1])


class _TokenDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: HeadWeight, bias_V: Tensor | None, work: _Work
    ) -> tuple[Tensor, Tensor]:
        logz_N3 = hidden_ND.new_empty(len(work.target_N), 3, dtype=wide(hidden_ND))
        logp_N, div_N = torch.empty_like(logz_N3[:, 0]), torch.empty_like(logz_N3[:, 0])
        for rows, student_CV, teacher_CV in work.chunks(hidden_ND, weight_VD, bias_V):
            for block in work.blocks(rows, student_CV, teacher_CV, logz_N3, known=False):
                logp_N[block.rows], div_N[block.rows] = block.values()
        remember(ctx, hidden_ND, weight_VD, bias_V, logz_N3)
        ctx.work = work
        ctx.set_materialize_grads(False)
        return logp_N, div_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, logz_N3 = remembered(ctx)
        total = Gradients(ctx.needs_input_grad, hidden_ND, weight_VD, bias_V)
        for rows, student_CV, teacher_CV in ctx.work.chunks(hidden_ND, weight_VD, bias_V):
            for block in ctx.work.blocks(rows, student_CV, teacher_CV, logz_N3, known=True):
                block.differentiate(*(None if g is None else g[block.rows] for g in grads))
            total.add(rows, hidden_ND[rows], student_CV)
        return *total.given_out(), None


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: HeadWeight,
        bias_V: Tensor | None,
        work: _Work,
        of_logp_N: Tensor,
        of_divergence_N: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logz_N3 = hidden_ND.new_empty(len(work.target_N), 3, dtype=wide(hidden_ND))
        logp_N, div_N = torch.empty_like(logz_N3[:, 0]), torch.empty_like(logz_N3[:, 0])
        of_logp_N, of_divergence_N = of_logp_N.to(logp_N), of_divergence_N.to(logp_N)
        total = Gradients(ctx.needs_input_grad, hidden_ND, weight_VD, bias_V)
        for rows, student_CV, teacher_CV in work.chunks(hidden_ND, weight_VD, bias_V):
            for block in work.blocks(rows, student_CV, teacher_CV, logz_N3, known=False):
                logp_N[block.rows], div_N[block.rows] = block.values()
                if any(ctx.needs_input_grad[:3]):
                    block.differentiate(of_logp_N[block.rows], of_divergence_N[block.rows])
            if any(ctx.needs_input_grad[:3]):
                total.add(rows, hidden_ND[rows], student_CV)
        ctx.total = total
        ctx.mark_non_differentiable(logp_N, div_N)
        return (of_logp_N * logp_N + of_divergence_N * div_N).sum(), logp_N, div_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total, ctx.total = ctx.total, None
        if total is None:
            raise RuntimeError("linear_loss keeps its gradient for one backward pass; this is a second one")
        return *total.given_out(grads[0]), None, None, None


def cases() -> list[dict[str, Any]]:
    """Small inputs (fp64): each kind of teacher, both ends and the middle, shapes, biases, unlike vocabularies."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    made: list[dict[str, Any]] = []
    for beta, temperature in ((0.0, 1.0), (0.0, 2.0), (0.4, 0.8), (1.0, 1.0)):
        head = TeacherHead(normal(5, 6), normal(11, 6), normal(11), LogitShape(0.5, 3.0))
        longer, shorter = TeacherHead(normal(5, 3), normal(13, 3)), TeacherLogits(normal(5, 9))
        ids_NK = torch.rand(5, 11, generator=generator).topk(4).indices
        top = TopTokens(
            ids_NK, divergence.bucketed(divergence.log_softmax(normal(5, 11), temperature), ids_NK)
        )
        ordered_NK1 = divergence.log_softmax(normal(5, 7), temperature).sort(descending=True).values
        ordered_NK1[2] = LOWEST
        for teacher in (head, longer, shorter, top, SortedTokens(ordered_NK1)):
            apart = SortedDistance(6, temperature) if isinstance(teacher, SortedTokens) else None
            made.append(
                {
                    "hidden_ND": normal(5, 4),
                    "weight_VD": normal(11, 4),
                    "bias_V": normal(11) if teacher is not longer else None,
                    "target_N": torch.tensor([0, 10, 3, 3, 7]),
                    "teacher": teacher,
                    "measure": apart or Divergence(beta, temperature),
                    "shape": LogitShape(0.5, 3.0) if teacher is head or teacher is top else LogitShape(),
                    "chunk": 2,
                }
            )
    return made
