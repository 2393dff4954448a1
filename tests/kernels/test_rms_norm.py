"""RMSNorm on the CPU: C++ and plain torch against the definition, strided, in place, to the bit from run to run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpu_paths import PATHS, on_path
from kernel_parts import DTYPES, assert_accurate, gradients, intact, strided
from luthier.kernels import native, rms_norm

Case = dict[str, Any]


def plain(case: Case) -> Callable[..., Tensor]:
    return lambda x, weight: rms_norm.reference(x, weight, case["eps"], case["offset"])


def normal(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(len(rms_norm.cases())))
def test_forward_and_backward_are_those_of_the_reference(index: int, dtype: torch.dtype, path: str) -> None:
    case = rms_norm.cases(dtype)[index]
    x, weight, eps, offset = case["x"], case["weight_D"], case["eps"], case["offset"]
    grad = normal(*x.shape, dtype=dtype)
    truth = gradients(plain(case), [x.double(), weight.double()], grad.double())
    other = gradients(plain(case), [x, weight], grad)
    out, dx = strided(torch.zeros_like(x)), strided(torch.zeros_like(x))
    with on_path(path):
        y, rstd = rms_norm.forward(strided(x), weight, eps, offset, out=out)
        found, dweight = rms_norm.backward(
            strided(grad), strided(x), rstd, weight, offset, out=dx, weight_grad=True
        )
    assert y is out and found is dx and intact(out) and intact(dx)
    assert rstd.dtype == torch.float32 and rstd.shape == x.shape[:-1]
    assert dweight is not None and dweight.dtype == torch.float32
    for ours, exact, rounded in zip((y, dx, dweight), truth, other, strict=True):
        assert_accurate(ours, exact, rounded)


SMALL = [index for index, case in enumerate(rms_norm.cases()) if case["x"].numel() <= 100]


@pytest.mark.parametrize("index", SMALL)
def test_gradcheck(index: int) -> None:
    case = rms_norm.cases()[index]

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            y, rstd = rms_norm.forward(x, weight, case["eps"], case["offset"])
            ctx.save_for_backward(x, rstd, weight)
            return y

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            x, rstd, weight = ctx.saved_tensors
            return rms_norm.backward(grads[0], x, rstd, weight, case["offset"], weight_grad=True)

    assert torch.autograd.gradcheck(
        Norm.apply, (case["x"].requires_grad_(), case["weight_D"].requires_grad_())
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("shape", [(5, 33), (4, 3, 8)])
def test_a_residual_is_added_as_the_stream_stores_it(
    shape: tuple[int, ...], dtype: torch.dtype, path: str
) -> None:
    x, residual = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    weight, summed = normal(shape[-1], dtype=dtype, seed=2), strided(torch.zeros_like(x))
    with on_path(path):
        found = rms_norm.forward(strided(x), weight, 1e-5, residual=strided(residual), summed=summed)
        assert intact(summed) and torch.equal(summed, x + residual)
        assert all(map(torch.equal, found, rms_norm.forward(x + residual, weight, 1e-5)))
        for place in (x, residual):  # the sum may take the place of either
            kept = place.clone()
            again = rms_norm.forward(x, weight, 1e-5, residual=residual, summed=place)
            assert torch.equal(place, summed) and all(map(torch.equal, again, found))
            place.copy_(kept)
        assert torch.equal(rms_norm.forward(summed, weight, 1e-5, out=summed)[0], found[0])  # and y that of x


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_the_residual_streams_gradient_joins_in_the_same_pass_and_in_place(
    dtype: torch.dtype, path: str
) -> None:
    x, grad, past = (normal(6, 40, dtype=dtype, seed=seed) for seed in range(3))
    weight = normal(40, seed=3).to(dtype)
    with on_path(path):
        _, rstd = rms_norm.forward(x, weight, 1e-6)
        joined, _ = rms_norm.backward(grad, x, rstd, weight, add_to=past)
        wide = torch.promote_types(dtype, torch.float32)
        alone, _ = rms_norm.backward(grad.to(wide), x.to(wide), rstd, weight.to(wide))
        torch.testing.assert_close(joined, (alone + past.to(wide)).to(dtype))
        for place in (grad, past):
            kept = place.clone()
            found = rms_norm.backward(grad, x, rstd, weight, add_to=past, out=place)[0]
            assert found is place and torch.equal(place, joined)
            place.copy_(kept)


@given(tokens=st.integers(0, 70), heads=st.integers(1, 3), width=st.integers(1, 70), seed=st.integers(0, 99))
def test_cpp_equals_plain_torch(tokens: int, heads: int, width: int, seed: int) -> None:
    x, grad, past = normal(3, tokens, heads, width, seed=seed).unbind()
    weight = normal(width, seed=seed + 1)

    def both() -> list[Tensor]:
        y, rstd = rms_norm.forward(x, weight, 1e-3, 1.0)
        dx, dweight = rms_norm.backward(grad, x, rstd, weight, 1.0, add_to=past, weight_grad=True)
        assert dweight is not None
        return [y, rstd, dx, dweight]

    ours = both()
    with native.disabled():
        torch.testing.assert_close(ours, both(), rtol=2e-5, atol=2e-5)


def test_the_same_bits_each_time_and_with_any_number_of_threads() -> None:
    x, grad, weight = normal(1500, 96), normal(1500, 96, seed=1), normal(96, seed=2)
    _, rstd = rms_norm.forward(x, weight, 1e-6)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            dx, dweight = rms_norm.backward(grad, x, rstd, weight, weight_grad=True)
            assert dweight is not None
            found.append(torch.cat((dx, dweight[None])))
    finally:
        torch.set_num_threads(before)
    if native.library() is None:
        found = found[:2]  # plain torch promises only the first
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("path", PATHS)
def test_extreme_rows(path: str) -> None:
    """Zeros stay zero, large rows are normalised, an overflow shows in its own row alone."""
    x = torch.ones(4, 24)
    x[0], x[1], x[2, 3] = 0.0, 1e15, torch.inf
    with on_path(path):
        y, _ = rms_norm.forward(x, torch.ones(24), 1e-6)
    assert torch.equal(y[0], torch.zeros(24)) and not y[2].isfinite().all()
    torch.testing.assert_close(y[[1, 3]], torch.ones(2, 24))
