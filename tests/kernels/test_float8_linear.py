"""Products of 8-bit floats against their definition, torchao's, and what must not depend on neighbours."""

from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.float8_linear import cases, float8_linear, reference, seen, why_not


def product(case: dict[str, Any], seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, gradient of the output, gradients of input and weight."""
    x, weight = (case[name].clone().requires_grad_() for name in ("x_TK", "weight_MK"))
    y = float8_linear(x, weight, None)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    of_x, of_weight = torch.autograd.grad(y, (x, weight), grad)
    return y.detach(), grad, of_x, of_weight


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{len(case['x_TK'])} tokens")
def test_all_three_products_are_as_defined(case: dict[str, Any]) -> None:
    y, grad, of_x, of_weight = product(case)
    torch.testing.assert_close(y, reference(**case), rtol=1e-5, atol=1e-5 * float(y.abs().max()))
    expected = reference(grad, case["weight_MK"].T)
    torch.testing.assert_close(of_x, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    torch.testing.assert_close(of_weight, grad.T @ case["x_TK"])


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{len(case['x_TK'])} tokens")
def test_a_number_is_off_by_a_sixteenth_at_most(case: dict[str, Any]) -> None:
    """E4M3 has three bits after the first; the largest of a row is met exactly."""
    for rows in case.values():
        found, largest = seen(rows), rows.abs().amax(1, keepdim=True)
        assert bool(((found - rows).abs() <= rows.abs() / 16 + largest * 2**-10 / 448).all())
        assert torch.allclose(found.abs().amax(1, keepdim=True), largest, rtol=1e-6)


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    case = cases()[-1]
    y, _, of_x, _ = product(case)
    loud = {**case, "x_TK": torch.cat([case["x_TK"], 1e4 * case["x_TK"][:3]])}
    again, _, of_loud, _ = product(loud)
    torch.testing.assert_close(again[: len(y)], y, rtol=1e-6, atol=1e-6 * float(y.abs().max()))
    torch.testing.assert_close(of_loud[: len(y)], of_x, rtol=1e-6, atol=1e-6 * float(of_x.abs().max()))


def test_bias_and_leading_dimensions() -> None:
    case, bias = cases()[2], torch.randn(48)
    x = case["x_TK"].view(2, 20, 32)
    plain = float8_linear(case["x_TK"], case["weight_MK"], None)
    torch.testing.assert_close(float8_linear(x, case["weight_MK"], bias), plain.view(2, 20, 48) + bias)
    half = float8_linear(x.bfloat16(), case["weight_MK"].bfloat16(), None)
    assert half.dtype is torch.bfloat16
    assert why_not(48, 32) is None and why_not(48, 40) and why_not(24, 32)


def test_torchao_multiplies_the_same_numbers() -> None:
    float8 = pytest.importorskip("torchao.float8")
    linear = pytest.importorskip("torchao.float8.float8_linear")
    recipe = float8.Float8LinearConfig.from_recipe_name("rowwise_with_gw_hp")
    object.__setattr__(recipe, "emulate", True)
    object.__setattr__(recipe, "round_scales_to_power_of_2", False)
    object.__setattr__(
        recipe, "cast_config_weight_for_grad_input", recipe.cast_config_weight
    )  # not one scale
    case = cases()[-1]
    plain = torch.nn.Linear(32, 48, bias=False)
    plain.weight.data.copy_(case["weight_MK"])
    theirs = linear.Float8Linear.from_float(plain, config=recipe)
    x = case["x_TK"].clone().requires_grad_()
    y = theirs(x)
    ours, grad, of_x, of_weight = product(case)
    found = torch.autograd.grad(y, (x, theirs.weight), grad)
    for mine, other in zip((ours, of_x, of_weight), (y.detach(), *found), strict=True):
        assert (
            float((mine - other).norm() / other.norm()) < 5e-3
        )  # a scale's last bit moves a code now and then
