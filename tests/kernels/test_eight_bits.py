"""Products that stay in 8 bits: what they compute, how near that is, and adapters beside them."""

import pytest
import torch
from torch import Tensor

import luthier.kernels.quant
from kernel_parts import strided
from luthier.config.plugins import load_plugin
from luthier.config.quant_section import EIGHT_BITS
from luthier.kernels import eight_bits
from luthier.kernels.decoded_linears import DecodedLinears
from luthier.kernels.eight_bit_linears import EightBitLinears
from luthier.kernels.linears import Linear, LowRank
from luthier.kernels.quant.base import Stored, store
from luthier.kernels.workspace import Workspace

BOUND = {"int8": 0.012, "fp8": 0.045}
"""What rounding both sides may cost, |error| / |product|, for normal numbers."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stored(name: str, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Stored:
    return store(load_plugin(luthier.kernels.quant, name)(), normal(*shape, seed=seed) * 0.05, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_products_are_those_of_the_rounded_numbers(name: str, dtype: torch.dtype) -> None:
    """Both sides as codes and scales, multiplied in fp64."""
    weight, eps = stored(name, 48, 64, dtype=dtype), torch.finfo(dtype).eps
    codes, scale = weight.parts["codes"].double(), weight.parts["scale"].double()
    x, grad = normal(9, 64, seed=1, dtype=dtype), normal(9, 48, seed=2, dtype=dtype)
    x[0], grad[0] = 0, 0
    seen, of = eight_bits.by_token(x.float(), weight.parts["codes"].dtype)
    expected = (seen.double() * of.double()) @ (codes * scale[:, None]).T
    out = strided(torch.zeros(9, 48, dtype=dtype))
    assert eight_bits.forward(x, weight, out) is out and not out[0].any()
    torch.testing.assert_close(out.double(), expected, rtol=2 * eps, atol=1e-5)
    seen, of = eight_bits.by_token(grad.float() * weight.parts["scale"], weight.parts["codes"].dtype)
    expected = (seen.double() * of.double()) @ codes
    found = eight_bits.input_gradient(grad, weight)
    assert found.dtype == dtype and not found[0].any()
    torch.testing.assert_close(found.double(), expected, rtol=2 * eps, atol=1e-5)


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_rounding_costs_little(name: str) -> None:
    weight = stored(name, 256, 512)
    x, grad = normal(64, 512, seed=1), normal(64, 256, seed=2)
    exact = x @ weight.weight().T
    made = eight_bits.forward(x, weight, torch.empty(64, 256))
    assert 0 < (made - exact).norm() <= BOUND[name] * exact.norm()
    exact = grad @ weight.weight()
    assert 0 < (eight_bits.input_gradient(grad, weight) - exact).norm() <= BOUND[name] * exact.norm()
    assert eight_bits.forward(x[:0], weight, torch.empty(0, 256)).shape == (0, 256)


def test_what_is_no_such_weight_is_told() -> None:
    assert eight_bits.why_not(stored("nf4", 8, 64)) and eight_bits.why_not(stored("q8_0", 8, 64))
    assert all(eight_bits.why_not(stored(name, 8, 64)) is None for name in EIGHT_BITS)


def layers_of(name: str) -> list[Linear]:
    """Two layers with adapters, one of them with a start and a bias, and one without."""
    made = []
    for number, num_out in enumerate((24, 40, 16)):
        update = None
        if number < 2:
            a, b = normal(3, 64, seed=8 + number), normal(num_out, 3, seed=9 + number)
            begun = (normal(3, 64, seed=3), normal(num_out, 3, seed=4)) if number else None
            update = LowRank(a.requires_grad_(), b.requires_grad_(), 0.02, begun)
        made.append(
            Linear(stored(name, num_out, 64, seed=number), normal(num_out) if number else None, update)
        )
    return made


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_a_group_is_that_of_decoded_weights_up_to_rounding(name: str, dropout: float) -> None:
    outcomes = []
    for kind in (EightBitLinears, DecodedLinears):
        layers = layers_of(name)
        group = kind(layers) if kind is EightBitLinears else DecodedLinears(layers, Workspace())
        group.dropout, group.training = dropout, lambda: True
        group.refresh()
        torch.manual_seed(0)
        wide_x, wide_grad = torch.zeros(32, 64 + group.spare), torch.zeros(32, 80 + group.spare)
        wide_x[:, :64], wide_grad[:, :80] = normal(32, 64, seed=20), normal(32, 80, seed=21)
        with torch.no_grad():
            mask = group.draw_mask(wide_x)
            out = group.forward(wide_x, torch.empty(32, 80), add_to=torch.ones(32, 80), mask=mask)
            group.input_gradient(wide_grad, grad_x := torch.empty(32, 64), mask)
            outcomes.append([out, grad_x, *group.parameter_gradients(wide_grad, wide_x, mask=mask)])
    (out, grad_x, *grads), (expected, of_x, *others) = outcomes
    assert 0 < (out - expected).norm() <= BOUND[name] * expected.norm()
    assert 0 < (grad_x - of_x).norm() <= BOUND[name] * of_x.norm()
    assert len(grads) == len(others) == 4
    for mine, their in zip(grads, others, strict=True):  # adapters see numbers as they are
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)
