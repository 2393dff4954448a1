"""The gated product on the CPU: C++ and plain torch against the definition; every kind, tails, in place."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpu_paths import PATHS, on_path
from kernel_parts import DTYPES, assert_accurate, gradients, intact, strided
from luthier.kernels import gated, native

NUM_CASES = len(gated.cases())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(NUM_CASES))
def test_forward_and_backward_are_those_of_the_reference(index: int, dtype: torch.dtype, path: str) -> None:
    case = gated.cases(dtype)[index]
    gate, up, kind = case["gate_TI"], case["up_TI"], case["kind"]
    grad = torch.randn(gate.shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    def plain(gate: Tensor, up: Tensor) -> Tensor:
        return gated.reference(gate, up, kind)

    truth = gradients(plain, [gate.double(), up.double()], grad.double())
    other = gradients(plain, [gate, up], grad)
    out, dgate, dup, product = (strided(torch.zeros_like(gate)) for _ in range(4))
    inputs = strided(gate), strided(up)
    with on_path(path):
        assert gated.forward(*inputs, kind, out=out) is out
        gated.backward(strided(grad), *inputs, kind, gate_grad=dgate, up_grad=dup, product=product)
        assert all(intact(place) for place in (out, dgate, dup, product))
        torch.testing.assert_close(product, out)
        for ours, exact, rounded in zip((out, dgate, dup), truth, other, strict=True):
            if path == "torch" and dtype == torch.float32:
                torch.testing.assert_close(
                    ours, rounded
                )  # no better and no worse than torch's own activations
            else:
                assert_accurate(ours, exact, rounded)
        fresh = gated.forward(gate, up, kind), *gated.backward(grad, gate, up, kind)
        for found, strided_one in zip(fresh, (out, dgate, dup), strict=True):
            if path == "cpp":
                assert torch.equal(found, strided_one)
            else:  # torch's own activations round strided rows differently
                torch.testing.assert_close(found, strided_one)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("kind", gated.KINDS)
def test_results_may_take_the_place_of_inputs(kind: str, dtype: torch.dtype, path: str) -> None:
    grad, gate, up = torch.randn(3, 5, 19, generator=torch.Generator().manual_seed(2)).to(dtype).unbind()
    with on_path(path):
        product = torch.empty_like(gate)
        dgate, dup = gated.backward(grad, gate, up, kind, product=product)
        expected = [dgate, dup, product]
        for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            inputs = [grad.clone(), gate.clone(), up.clone()]
            places = [inputs[i] for i in order]
            gated.backward(*inputs, kind, gate_grad=places[0], up_grad=places[1], product=places[2])
            assert all(map(torch.equal, places, expected))
        for place in (0, 1):
            inputs = [gate.clone(), up.clone()]
            assert torch.equal(gated.forward(*inputs, kind, out=inputs[place]), gated.forward(gate, up, kind))


@pytest.mark.parametrize("index", range(NUM_CASES))
def test_gradcheck(index: int) -> None:
    case = gated.cases()[index]

    class Gated(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
            ctx.save_for_backward(gate, up)
            return gated.forward(gate, up, case["kind"])

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return gated.backward(grads[0], *ctx.saved_tensors, case["kind"])

    inputs = case["gate_TI"].requires_grad_(), case["up_TI"].requires_grad_()
    assert torch.autograd.gradcheck(Gated.apply, inputs)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", gated.KINDS)
def test_far_tails_are_finite_and_nan_is_seen(kind: str, path: str) -> None:
    gate = torch.tensor([[-1e4, -200.0, -90.0, -12.0, 0.0, 12.0, 90.0, 200.0, 1e4]])
    ones = torch.ones_like(gate)
    truth = gradients(lambda g: gated.reference(g, ones.double(), kind), [gate.double()], ones.double())
    with on_path(path):
        found = gated.forward(gate, ones, kind), gated.backward(ones, gate, ones, kind)[0]
        for ours, exact in zip(found, truth, strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-6)
        broken = gate.clone()
        broken[0, 2] = torch.nan
        seen = gated.forward(broken, ones, kind), *gated.backward(ones, broken, ones, kind)
        assert all(torch.equal(result.isnan(), broken.isnan()) for result in seen)


@given(
    tokens=st.integers(0, 5),
    width=st.integers(1, 70),
    spread=st.floats(0.1, 30),
    kind=st.sampled_from(gated.KINDS),
)
def test_cpp_is_within_rounding_of_the_definition(tokens: int, width: int, spread: float, kind: str) -> None:
    """Element by element, against fp64: no polynomial may be off where a norm would not show it."""
    gate, up = torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(width)).unbind()
    gate = gate * spread
    truth = gradients(
        lambda g, u: gated.reference(g, u, kind), [gate.double(), up.double()], torch.ones_like(gate).double()
    )
    found = gated.forward(gate, up, kind), *gated.backward(torch.ones_like(gate), gate, up, kind)
    for ours, exact in zip(found, truth, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=4e-6, atol=1e-6)


def test_switching_off_gives_the_same_up_to_rounding() -> None:
    gate, up, grad = torch.randn(3, 64, 100, generator=torch.Generator().manual_seed(3)).unbind()
    for kind in gated.KINDS:
        ours = gated.backward(grad, gate, up, kind)
        with native.disabled():
            torch.testing.assert_close(ours, gated.backward(grad, gate, up, kind), rtol=1e-5, atol=1e-6)
