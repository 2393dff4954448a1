"""The elementwise part of the head: target log-probabilities of a chunk of logits, and the logits' gradient, in place.

    logz_c = log Σ_v exp(shape(logit_cv)),   logp_c = shape(logit_{c, target}) - logz_c
    gradient of Σ g_c · logp_c  =  g_c · (onehot(target_c) - softmax_c) · shape'

`reference` is the definition. The others work in the logits' own memory and dtype, with fp32 arithmetic (fp64 for
fp64) and fp32 log-normalisers, so that a chunk needs no second tensor of its size. On the CPU the C++ side reads a
row from memory once and from the second-level cache the second time.

Shape suffixes: C predictions of one chunk, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.kernels import native, triton

_BLOCK_ELEMENTS = (
    1 << 20
)  # of logits that plain torch widens at once: its temporaries stay in the last-level cache
_SIGNATURE = "pi pppp ii ff i"


@dataclass(frozen=True)
class LogitShape:
    """What happens to the raw logits before the softmax: scaled first, then soft-capped."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits_CV: Tensor) -> Tensor:
        """The shaped logits in fp32 (fp64 stays fp64)."""
        logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
        if self.scale != 1.0:
            logits_CV = logits_CV * self.scale
        if self.softcap is not None:
            logits_CV = torch.tanh(logits_CV / self.softcap) * self.softcap
        return logits_CV

    def backward(self, grad_CV: Tensor, shaped_CV: Tensor) -> Tensor:
        """Gradient with respect to the raw logits, from that with respect to the shaped ones. Works in place."""
        if self.softcap is not None:
            grad_CV = grad_CV.mul_(1 - (shaped_CV / self.softcap) ** 2)
        return grad_CV.mul_(self.scale) if self.scale != 1.0 else grad_CV


def reference(logits_CV: Tensor, target_C: Tensor, shape: LogitShape) -> Tensor:
    """The definition of logp, [C]."""
    return torch.log_softmax(shape(logits_CV), -1).gather(1, target_C[:, None])[:, 0]


def forward(logits_CV: Tensor, target_C: Tensor, shape: LogitShape) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and log-normaliser of each row, both [C] in fp32 (fp64 for fp64)."""
    return _sweep(logits_CV, target_C, None, None, shape)


def gradient_(
    logits_CV: Tensor, logz_C: Tensor, target_C: Tensor, grad_C: Tensor, shape: LogitShape
) -> Tensor:
    """The logits' memory, now holding the gradient of Σ grad · logp with respect to them. `logz_C`: of `forward`."""
    if _on_gpu(logits_CV):
        from luthier.kernels.triton import softmax_gradient as device

        return device.gradient_(logits_CV, logz_C, target_C, grad_C, shape)
    _sweep(logits_CV, target_C, grad_C, logz_C, shape)
    return logits_CV


def logp_and_gradient_(
    logits_CV: Tensor, target_C: Tensor, coefficient_C: Tensor, shape: LogitShape
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [C] in fp32, and the logits' memory holding the gradient of Σ coefficient · logp."""
    if _on_gpu(logits_CV):
        from luthier.kernels.triton import softmax_gradient as device

        return device.logp_and_gradient_(logits_CV, target_C, coefficient_C, shape)
    return _sweep(logits_CV, target_C, coefficient_C, None, shape)[0], logits_CV


def _on_gpu(logits_CV: Tensor) -> bool:
    return triton.serves(logits_CV)


def _sweep(
    logits_CV: Tensor,
    target_C: Tensor,
    coefficient_C: Tensor | None,
    logz_C: Tensor | None,
    shape: LogitShape,
) -> tuple[Tensor, Tensor]:
    """logp and logz, unless logz is known; then the gradient in place, if there are coefficients."""
    if _on_gpu(logits_CV):
        from luthier.kernels.triton import softmax_gradient as device

        return device.forward(logits_CV, target_C, shape)
    if (found := native.library_for(logits_CV)) is None:
        return _plain_sweep(logits_CV, target_C, coefficient_C, logz_C, shape)
    (num_rows, vocabulary), known = logits_CV.shape, logz_C is not None
    _check_targets(target_C, vocabulary)
    logp_C = torch.empty(num_rows, dtype=torch.float32, device=logits_CV.device)
    logz_C = torch.empty_like(logp_C) if logz_C is None else logz_C.float().contiguous()
    if coefficient_C is not None:
        coefficient_C = coefficient_C.float().contiguous()
    target_C = target_C.contiguous()
    found.function(f"softmax_gradient_{native.SUFFIX[logits_CV.dtype]}", _SIGNATURE)(
        logits_CV.data_ptr(),
        logits_CV.stride(0),
        *map(native.pointer, (target_C, coefficient_C, logp_C, logz_C)),
        num_rows,
        vocabulary,
        shape.scale,
        shape.softcap or 0.0,
        not known,
    )
    return logp_C, logz_C


def _check_targets(target_C: Tensor, vocabulary: int) -> None:
    """Refuses what would be read and written outside the row; plain torch's gather does the same."""
    assert target_C.dtype == torch.int64
    if len(target_C):
        low, high = (int(bound) for bound in torch.aminmax(target_C))
        if low < 0 or high >= vocabulary:
            raise IndexError(
                f"targets from {low} to {high} are not all within the {vocabulary} logits of a row"
            )


def _plain_sweep(
    logits_CV: Tensor,
    target_C: Tensor,
    coefficient_C: Tensor | None,
    logz_C: Tensor | None,
    shape: LogitShape,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(logits_CV.dtype, torch.float32)
    known, num_rows = logz_C is not None, len(logits_CV)
    logp_C = torch.empty(num_rows, dtype=wide, device=logits_CV.device)
    logz_C = torch.empty_like(logp_C) if logz_C is None else logz_C
    for rows in _row_blocks(logits_CV):
        shaped_BV, target_B1 = shape(logits_CV[rows]), target_C[rows, None]
        if not known:
            logz_C[rows] = torch.logsumexp(shaped_BV, -1)
            logp_C[rows] = shaped_BV.gather(1, target_B1)[:, 0] - logz_C[rows]
        if coefficient_C is not None:
            coefficient_B1 = coefficient_C[rows, None].to(wide)
            grad_BV = (shaped_BV - logz_C[rows, None]).exp_().mul_(-coefficient_B1)
            grad_BV.scatter_add_(1, target_B1, coefficient_B1)
            logits_CV[rows] = shape.backward(grad_BV, shaped_BV)
    return logp_C, logz_C


def _row_blocks(logits_CV: Tensor) -> Iterator[slice]:
    size = max(1, _BLOCK_ELEMENTS // logits_CV.shape[1])
    return (slice(start, start + size) for start in range(0, len(logits_CV), size))


def cases(dtype: torch.dtype = torch.float64) -> list[dict[str, Any]]:
    """Small inputs: no row, one, several; a vocabulary of one, of several blocks; scale and soft cap."""
    generator = torch.Generator().manual_seed(0)
    shapes = (LogitShape(), LogitShape(scale=0.25), LogitShape(softcap=2.0), LogitShape(0.5, 3.0))
    made = []
    for rows, vocabulary in ((0, 5), (1, 1), (3, 11), (4, 2051)):
        for shape in shapes:
            logits_CV = 3 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
            target_C = torch.randint(vocabulary, (rows,), generator=generator)
            coefficient_C = torch.randn(rows, generator=generator, dtype=torch.float64)
            made.append(
                {
                    "logits_CV": logits_CV.to(dtype),
                    "target_C": target_C,
                    "coefficient_C": coefficient_C,
                    "shape": shape,
                }
            )
    return made
