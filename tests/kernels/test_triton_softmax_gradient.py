"""The GPU's log-probabilities and their gradient against the definition, over one block and over many."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernel_parts import DTYPES, assert_accurate, gradients, intact, strided
from luthier.kernels import softmax_gradient
from luthier.kernels.softmax_gradient import LogitShape
from luthier.kernels.triton import softmax_gradient as device
from triton_parts import DEVICE, ROUNDED, on_device


def _check(case: dict[str, Any]) -> None:
    logits, target, shape, grad = (case[k] for k in ("logits_CV", "target_C", "shape", "coefficient_C"))

    def plain(logits: Tensor) -> Tensor:
        return softmax_gradient.reference(logits, target, shape)

    truth = gradients(plain, [logits.double()], grad.double())
    other = gradients(plain, [logits], grad.float())
    if logits.dtype not in ROUNDED:  # written in place, hence cut off: one step of the dtype's grid
        other[1] = truth[1] * (1 + torch.finfo(logits.dtype).eps)
    one, both = strided(logits), strided(logits)
    logp, logz = device.forward(one, target, shape)
    assert logp.dtype == logz.dtype == torch.float32 and torch.equal(one, logits)
    assert device.gradient_(one, logz, target, grad, shape) is one and intact(one)
    logp_too, gradient_too = device.logp_and_gradient_(both, target, grad, shape)
    assert gradient_too is both and intact(both)
    torch.testing.assert_close((logp_too, both), (logp, one))
    assert_accurate(logp, truth[0], other[0])
    assert_accurate(one, truth[1], other[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(len(softmax_gradient.cases())))
def test_values_and_gradient_are_those_of_the_reference(index: int, dtype: torch.dtype) -> None:
    _check(on_device(softmax_gradient.cases(dtype)[index]))


@pytest.mark.parametrize("index", [8, 9, 10, 11])
def test_many_blocks_of_the_vocabulary(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "COLUMNS", 4)  # 11 logits: three blocks, the last one not full
    _check(on_device(softmax_gradient.cases(torch.float32)[index]))


def test_logits_of_minus_infinity_have_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "COLUMNS", 4)
    logits = torch.randn(3, 11, device=DEVICE)
    logits[0, :6], logits[1, 4:8], logits[2, 8:] = 3 * (-torch.inf,)  # a first, a middle, a last block
    target = torch.tensor([7, 0, 5], device=DEVICE)
    expected = softmax_gradient.reference(logits.double(), target, LogitShape())
    share = torch.softmax(logits.double(), -1)
    logp, gradient = device.logp_and_gradient_(logits, target, torch.ones(3, device=DEVICE), LogitShape())
    torch.testing.assert_close(logp.double(), expected, rtol=1e-6, atol=1e-6)
    onehot = torch.nn.functional.one_hot(target, 11)
    torch.testing.assert_close(gradient.double(), onehot - share, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", [-1, -100, 11, 12])
def test_a_target_outside_the_vocabulary_is_nan_in_its_row_only(target: int) -> None:
    logits = torch.randn(3, 11, device=DEVICE)
    targets = torch.tensor([2, target, 3], device=DEVICE)
    logp, logz = device.forward(logits, targets, LogitShape())
    assert logp.isnan().tolist() == [False, True, False] and logz.isfinite().all()


@settings(max_examples=15)
@given(shift=st.floats(-60, 60), scale=st.floats(0.1, 2), seed=st.integers(0, 1000))
def test_laws(shift: float, scale: float, seed: int) -> None:
    """A constant added to all logits changes nothing; each row's gradient sums to zero."""
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    target, ones = torch.tensor([0, 8], device=DEVICE), torch.ones(2, device=DEVICE)
    shape = LogitShape(scale)
    logp, gradient = device.logp_and_gradient_(logits.clone(), target, ones, shape)
    shifted, same = device.logp_and_gradient_(logits + shift, target, ones, shape)
    torch.testing.assert_close(shifted, logp, rtol=1e-5, atol=4e-5)
    torch.testing.assert_close(same, gradient, rtol=1e-4, atol=4e-5)
    assert gradient.sum(1).abs().max() <= 1e-6
