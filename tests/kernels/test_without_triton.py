"""On a GPU without Triton, as on Windows, every op runs in plain torch.

No GPU is needed: the tensors say that they lie on one, and the modules of Triton kernels cannot be imported.
"""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernel_parts import gradients
from luthier.kernels import gated, rms_norm, rotary, softmax_gradient
from luthier.kernels import triton as triton_side
from luthier.kernels.softmax_gradient import LogitShape


class OnGpu(Tensor):
    """A tensor that takes itself to be on a GPU."""

    is_cuda = True  # pyright: ignore[reportAssignmentType]
    is_cpu = False  # pyright: ignore[reportAssignmentType]


@pytest.fixture(autouse=True)
def nobody_has_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_side, "available", lambda: False)
    for op in ("gated", "rms_norm", "rotary", "softmax_gradient"):
        monkeypatch.setitem(sys.modules, f"luthier.kernels.triton.{op}", None)


def rows(*size: int) -> Tensor:
    return torch.randn(*size).as_subclass(OnGpu)


def check(found: list[Tensor], reference: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> None:
    expected = gradients(reference, [x.as_subclass(Tensor) for x in inputs], grad.as_subclass(Tensor))
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.as_subclass(Tensor), right, rtol=1e-5, atol=1e-5)


def test_norms() -> None:
    x, weight_D, grad = rows(5, 8), rows(8), rows(5, 8)
    made, rstd = rms_norm.forward(x, weight_D, 1e-6)
    of_x, of_weight = rms_norm.backward(grad, x, rstd, weight_D, weight_grad=True)
    assert of_weight is not None
    check([made, of_x, of_weight], lambda x, w: rms_norm.reference(x, w, 1e-6), [x, weight_D], grad)


@pytest.mark.parametrize("kind", gated.KINDS)
def test_gated_products(kind: str) -> None:
    gate, up, grad = rows(5, 8), rows(5, 8), rows(5, 8)
    found = [gated.forward(gate, up, kind), *gated.backward(grad, gate, up, kind)]
    check(found, lambda g, u: gated.reference(g, u, kind), [gate, up], grad)


def test_rotations() -> None:
    x, cos, sin, grad = rows(5, 2, 8), rows(5, 8), rows(5, 8), rows(5, 2, 8)
    found = [rotary.rotate(x, cos, sin), rotary.rotate(grad, cos, sin, inverse=True)]
    plain_cos, plain_sin = cos.as_subclass(Tensor), sin.as_subclass(Tensor)
    check(found, lambda x: rotary.reference(x, plain_cos, plain_sin), [x], grad)


def test_the_head() -> None:
    logits, weight_C, shape = rows(5, 11), rows(5), LogitShape(softcap=3.0)
    target_C = torch.tensor([0, 10, 3, 4, 5])

    def plain(logits: Tensor) -> Tensor:
        return softmax_gradient.reference(logits, target_C, shape)

    logp_C, logz_C = softmax_gradient.forward(logits, target_C, shape)
    grad = softmax_gradient.gradient_(logits.clone(), logz_C, target_C, weight_C, shape)
    check([logp_C, grad], plain, [logits], weight_C)
    both = softmax_gradient.logp_and_gradient_(logits.clone(), target_C, weight_C, shape)
    check(list(both), plain, [logits], weight_C)
