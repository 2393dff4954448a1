"""LoRA linear: the fast path equals its definition, its gradients are exact, its rounding is bounded."""

from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.lora_linear import cases, dropout_mask, lora_linear, reference

Case = dict[str, Any]
NAMES = ("x", "weight_MK", "bias_M", "a_RK", "b_MR")


def gradients(function: Any, case: Case) -> list[Tensor]:
    """Output and gradients of a random weighting of it with respect to every tensor."""
    leaves = {name: case[name].detach().clone().requires_grad_() for name in NAMES if case[name] is not None}
    y = function(**{**case, **leaves})
    weighting = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y * weighting.to(y.dtype)).sum().backward()
    return [y.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)]


@pytest.mark.parametrize("index", range(len(cases())))
def test_equals_its_definition(index: int) -> None:
    case = cases()[index]
    for found, expected in zip(gradients(lora_linear, case), gradients(reference, case), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("index", range(len(cases())))
def test_gradcheck(index: int) -> None:
    case = cases()[index]
    given = {name: case[name].clone().requires_grad_() for name in NAMES if case[name] is not None}

    def run(*tensors: Tensor) -> Tensor:
        return lora_linear(**{**case, **dict(zip(given, tensors, strict=True))})

    assert torch.autograd.gradcheck(run, tuple(given.values()))


def test_the_definition_is_the_formula() -> None:
    for case in cases():
        kept = case["x"] if case["mask"] is None else case["x"] * case["mask"]
        expected = case["x"] @ case["weight_MK"].T + 1.5 * (kept @ case["a_RK"].T) @ case["b_MR"].T
        if case["bias_M"] is not None:
            expected = expected + case["bias_M"]
        torch.testing.assert_close(reference(**case), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounds_no_worse_than_twice_plain_torch(dtype: torch.dtype) -> None:
    """Root mean square error against fp64, on a layer large enough for it to be a statistic."""
    generator = torch.Generator().manual_seed(2)
    x, weight = torch.randn(64, 128, generator=generator), torch.randn(96, 128, generator=generator) / 11
    a, b = torch.randn(16, 128, generator=generator) / 11, torch.randn(96, 16, generator=generator) / 4
    x, weight, bias = x.to(dtype), weight.to(dtype), torch.randn(96, generator=generator).to(dtype)
    exact = reference(x.double(), weight.double(), bias.double(), a.double(), b.double(), 2.0)

    def error(y: Tensor) -> float:
        return (y.double() - exact).square().mean().sqrt().item()

    plain = error(reference(x, weight, bias, a, b, 2.0))
    found = error(lora_linear(x, weight, bias, a, b, 2.0))
    assert 0 < found <= 2 * plain


def test_the_masters_stay_fp32_and_get_fp32_gradients() -> None:
    for case in cases(torch.bfloat16):
        assert case["a_RK"].dtype == case["b_MR"].dtype == torch.float32
        a, b = case["a_RK"].requires_grad_(), case["b_MR"].requires_grad_()
        y = lora_linear(**case)
        y.float().sum().backward()
        assert y.dtype == torch.bfloat16
        assert a.grad.dtype == b.grad.dtype == torch.float32


def test_a_frozen_weight_gets_no_gradient() -> None:
    case = cases()[0]
    case["a_RK"].requires_grad_()
    lora_linear(**case).sum().backward()
    assert case["weight_MK"].grad is None
    assert case["a_RK"].grad is not None


def test_the_mask_keeps_its_share_and_its_expectation() -> None:
    torch.manual_seed(0)
    mask = dropout_mask(torch.empty(200, 500), 0.2)
    assert set(mask.unique().tolist()) == {0.0, 1.25}
    assert abs((mask == 0).float().mean().item() - 0.2) < 0.005  # four standard deviations of 100,000 draws
