"""Rotary embedding on the CPU: C++ and plain torch against the definition, and as the rotation it is."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpu_paths import PATHS, on_path
from kernel_parts import DTYPES, assert_accurate, gradients, intact, strided
from luthier.kernels import native, rotary

NUM_CASES = len(rotary.cases())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wide_tables", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(NUM_CASES))
def test_rotation_and_its_transpose(index: int, dtype: torch.dtype, wide_tables: bool, path: str) -> None:
    case = rotary.cases(dtype)[index]
    x, cos, sin = case["x_THD"], case["cos_TP"], case["sin_TP"]
    if wide_tables:
        cos, sin = cos.float(), sin.float()
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    def plain(tables: torch.dtype) -> Any:
        return lambda x: rotary.reference(x, cos.to(tables), sin.to(tables))

    truth = gradients(plain(torch.float64), [x.double()], grad.double())
    other = gradients(plain(dtype), [x], grad)
    y, dx = strided(torch.zeros_like(x)), strided(torch.zeros_like(x))
    with on_path(path):
        assert rotary.rotate(strided(x), strided(cos), strided(sin), out=y) is y
        rotary.rotate(strided(grad), cos, sin, inverse=True, out=dx)
        assert intact(y) and intact(dx)
        for ours, exact, rounded in zip((y, dx), truth, other, strict=True):
            assert_accurate(ours, exact, rounded)
        place = strided(x)
        assert rotary.rotate(place, cos, sin, out=place) is place and torch.equal(place, y) and intact(place)
        assert torch.equal(rotary.rotate(x, cos, sin), y)


@pytest.mark.parametrize("index", range(NUM_CASES))
def test_gradcheck(index: int) -> None:
    case = rotary.cases()[index]

    class Rotary(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return rotary.rotate(x, case["cos_TP"], case["sin_TP"])

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return rotary.rotate(grads[0], case["cos_TP"], case["sin_TP"], inverse=True)

    assert torch.autograd.gradcheck(Rotary.apply, (case["x_THD"].requires_grad_(),))


@given(tokens=st.integers(0, 9), heads=st.integers(1, 4), half=st.integers(0, 20), rest=st.integers(0, 9))
def test_turning_back_and_keeping_lengths(tokens: int, heads: int, half: int, rest: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, heads, 2 * half + rest, generator=generator)
    angle = torch.randn(tokens, half, generator=generator).repeat(1, 2)
    turned = rotary.rotate(x, angle.cos(), angle.sin())
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotary.rotate(turned, angle.cos(), angle.sin(), inverse=True), x)
    with native.disabled():
        torch.testing.assert_close(turned, rotary.rotate(x, angle.cos(), angle.sin()), rtol=1e-6, atol=1e-6)
