"""The GPU's gated product against its definition: every kind, value, gradients, recomputed product, in place."""

import pytest
import torch
from torch import Tensor

from kernel_parts import DTYPES, assert_accurate, gradients, intact, strided
from luthier.kernels import gated
from luthier.kernels.triton import gated as device
from triton_parts import DEVICE, on_device, result_dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(len(gated.cases())))
def test_forward_and_backward_are_those_of_the_reference(index: int, dtype: torch.dtype) -> None:
    case = on_device(gated.cases(dtype)[index])
    gate, up, kind = case["gate_TI"], case["up_TI"], case["kind"]
    grad = torch.randn_like(gate)

    def plain(gate: Tensor, up: Tensor) -> Tensor:
        return gated.reference(gate, up, kind)

    truth = gradients(plain, [gate.double(), up.double()], grad.double())
    made = result_dtype(dtype)
    other = gradients(plain, [gate.to(made), up.to(made)], grad.to(made))
    out, gate_grad, up_grad, product = (strided(torch.zeros_like(gate, dtype=made)) for _ in range(4))
    inputs = strided(gate), strided(up)
    assert device.forward(*inputs, kind, out=out) is out
    device.backward(strided(grad), *inputs, kind, gate_grad=gate_grad, up_grad=up_grad, product=product)
    assert all(intact(place) for place in (out, gate_grad, up_grad, product))
    torch.testing.assert_close(product, out)
    for ours, exact, rounded in zip((out, gate_grad, up_grad), truth, other, strict=True):
        assert_accurate(ours, exact, rounded)
    torch.testing.assert_close(device.forward(gate, up, kind, out=gate.clone()), out.to(dtype))
    # each result in the place of an input
    places = gate.clone(), up.clone(), grad.clone()
    device.backward(
        places[2], places[0], places[1], kind, gate_grad=places[0], up_grad=places[1], product=places[2]
    )
    torch.testing.assert_close(places, tuple(place.to(dtype) for place in (gate_grad, up_grad, product)))


@pytest.mark.parametrize("kind", gated.KINDS)
def test_rows_wider_than_a_tile(kind: str) -> None:
    gate, up, grad = torch.randn(3, 2, 2500, device=DEVICE).unbind()
    truth = gradients(lambda g, u: gated.reference(g, u, kind), [gate.double(), up.double()], grad.double())
    found = device.forward(gate, up, kind), *device.backward(grad, gate, up, kind)
    plain = gradients(lambda g, u: gated.reference(g, u, kind), [gate, up], grad)
    for ours, exact, rounded in zip(found, truth, plain, strict=True):
        assert_accurate(ours, exact, rounded)


@pytest.mark.filterwarnings(
    "ignore:overflow encountered in exp"
)  # the interpreter's numpy; infinity is meant
@pytest.mark.parametrize("kind", gated.KINDS)
def test_far_tails_are_finite(kind: str) -> None:
    gate = torch.tensor([[-1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4]], device=DEVICE)
    found = device.backward(torch.ones_like(gate), gate, torch.ones_like(gate), kind)
    expected = gradients(
        lambda g: gated.reference(g, torch.ones_like(g), kind), [gate], torch.ones_like(gate)
    )
    torch.testing.assert_close(found[0], expected[1])
    torch.testing.assert_close(device.forward(gate, torch.ones_like(gate), kind), expected[0])
