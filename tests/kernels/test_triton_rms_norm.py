"""The GPU's RMS norm against its definition, through awkward strides and in place."""

import pytest
import torch
from torch import Tensor

from kernel_parts import DTYPES, assert_accurate, gradients, intact, strided
from luthier.kernels import rms_norm
from luthier.kernels.triton import rms_norm as device
from triton_parts import DEVICE, ROUNDED, on_device, result_dtype


def _normal(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(len(rms_norm.cases())))
def test_forward_and_backward_are_those_of_the_reference(index: int, dtype: torch.dtype) -> None:
    case = on_device(rms_norm.cases(dtype)[index])
    x, weight, eps, offset = case["x"], case["weight_D"], case["eps"], case["offset"]
    grad = _normal(*x.shape, dtype=dtype)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm.reference(x, weight, eps, offset)

    truth = gradients(plain, [x.double(), weight.double()], grad.double())
    made = result_dtype(dtype)
    other = gradients(plain, [x.to(made), weight.to(made)], grad.to(made))
    out, dx = (strided(torch.zeros_like(x, dtype=made)) for _ in range(2))
    y, rstd = device.forward(strided(x), weight, eps, offset, out=out)
    assert y is out and intact(out) and rstd.dtype == torch.float32 and rstd.shape == x.shape[:-1]
    found, dweight = device.backward(
        strided(grad), strided(x), rstd, weight, offset, out=dx, weight_grad=True
    )
    assert found is dx and intact(dx)
    assert dweight is not None and dweight.dtype == torch.float32
    for ours, exact, rounded in zip((y, dx, dweight), truth, other, strict=True):
        assert_accurate(ours, exact, rounded)
    again, none = device.backward(grad, x, rstd, weight, offset, out=torch.empty_like(dx))
    assert none is None
    torch.testing.assert_close(again, dx)  # other strides: a GPU may sum a row in another order


@pytest.mark.parametrize("shape", [(5, 33), (4, 3, 8)])
@pytest.mark.parametrize("dtype", ROUNDED)
def test_a_residual_is_added_as_the_stream_stores_it(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual, weight = (_normal(*s, dtype=dtype, seed=i) for i, s in enumerate((shape, shape, shape[-1:])))
    summed = strided(torch.zeros_like(x))
    y, rstd = device.forward(strided(x), weight, 1e-5, residual=strided(residual), summed=summed)
    assert intact(summed) and torch.equal(summed, x + residual)
    alone, alone_rstd = device.forward(x + residual, weight, 1e-5)
    torch.testing.assert_close((y, rstd), (alone, alone_rstd))
    for place in (x, residual):  # the sum may take the place of either
        kept = place.clone()
        device.forward(x, weight, 1e-5, residual=residual, summed=place)
        assert torch.equal(place, summed)
        place.copy_(kept)


@pytest.mark.parametrize("dtype", ROUNDED)
def test_the_residual_streams_gradient_joins_in_the_same_pass_and_in_place(dtype: torch.dtype) -> None:
    x, grad, past = (_normal(6, 40, dtype=dtype, seed=seed) for seed in range(3))
    weight = _normal(40, seed=3)
    _, rstd = device.forward(x, weight, 1e-6)
    joined, _ = device.backward(grad, x, rstd, weight, add_to=past)
    alone, _ = device.backward(grad.float(), x.float(), rstd, weight)
    torch.testing.assert_close(joined, (alone + past.float()).to(dtype))
    for place in (grad, past):
        kept = place.clone()
        assert torch.equal(device.backward(grad, x, rstd, weight, add_to=past, out=place)[0], joined)
        place.copy_(kept)


def test_the_weights_gradient_is_the_same_however_rows_are_shared_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, grad, weight = _normal(41, 500), _normal(41, 500, seed=1), _normal(500, seed=2)
    _, rstd = device.forward(x, weight, 1e-6)
    first = device.backward(grad, x, rstd, weight, weight_grad=True)
    again = device.backward(grad, x, rstd, weight, weight_grad=True)
    assert all(
        torch.equal(a, b) for a, b in zip(first, again, strict=True) if a is not None and b is not None
    )
    monkeypatch.setattr(
        device, "PARTIAL_SUMS", 3
    )  # each program then walks several tiles, the last one fewer
    shared = device.backward(grad, x, rstd, weight, weight_grad=True)
    torch.testing.assert_close(shared[0], first[0])
    assert first[1] is not None and shared[1] is not None
    assert (shared[1] - first[1]).norm() <= 1e-6 * first[1].norm()
