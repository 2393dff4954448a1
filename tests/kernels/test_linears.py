"""Stacked linear layers with their updates in the tails are the layers one by one: outputs, gradients, storage."""

import pytest
import torch
from torch import Tensor

from luthier.kernels.linears import Linear, Linears, LowRank, PackedLinears, SeparateLinears, cases, reference


def widened(x: Tensor, spare: int) -> Tensor:
    """A buffer with x on its left and rubbish behind it."""
    return torch.cat([x, torch.full((len(x), spare), torch.nan, dtype=x.dtype)], 1)


def outcome(linears: Linears, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, gradient of x and those of the parameters."""
    with torch.no_grad():
        wide_x, out = widened(x, linears.spare), x.new_full((len(x), linears.num_out), torch.nan)
        linears.forward(wide_x, out)
        wide_grad, grad_x = widened(grad, linears.spare), torch.full_like(x, torch.nan)
        linears.input_gradient(wide_grad, grad_x)
        return out, grad_x, linears.parameter_gradients(wide_grad, wide_x)


def truth(x: Tensor, layers: list[Linear], tensors: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """The same by autograd through the definition."""
    x = x.clone().requires_grad_()
    out = reference(x, layers)
    gradients = (
        torch.autograd.grad(out, [x, *tensors], grad) if tensors else torch.autograd.grad(out, [x], grad)
    )
    return out.detach(), *gradients


def packed(layers: list[Linear]) -> PackedLinears:
    for layer in layers:
        for master in (layer.update.a_RK, layer.update.b_MR) if layer.update else ():
            master.requires_grad_()
    linears = PackedLinears(layers)
    linears.refresh()
    return linears


@pytest.mark.parametrize("case", range(len(cases())))
def test_packed_is_the_layers_one_by_one(case: int) -> None:
    x, layers = cases()[case]
    grad = torch.randn(len(x), sum(len(layer.weight_MK) for layer in layers), dtype=x.dtype)
    linears = packed(layers)
    out, grad_x, gradients = outcome(linears, x, grad)
    for mine, theirs in zip(
        (out, grad_x, *gradients), truth(x, layers, linears.parameters, grad), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "case", [i for i, (_, layers) in enumerate(cases()) if not any(x.update for x in layers)]
)
@pytest.mark.parametrize("frozen", [(), (0,)])
def test_separate_is_the_layers_one_by_one(case: int, frozen: tuple[int, ...]) -> None:
    x, layers = cases()[case]
    for number, layer in enumerate(layers):
        for tensor in (layer.weight_MK, layer.bias_M):
            if tensor is not None:
                tensor.requires_grad_(number not in frozen)
    linears = SeparateLinears(layers)
    grad = torch.randn(len(x), linears.num_out, dtype=x.dtype)
    out, grad_x, gradients = outcome(linears, x, grad)
    for mine, theirs in zip(
        (out, grad_x, *gradients), truth(x, layers, linears.parameters, grad), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [PackedLinears, SeparateLinears])
def test_something_may_be_added_inside_the_product(kind: type) -> None:
    for x, layers in cases():
        if kind is SeparateLinears and any(layer.update for layer in layers):
            continue
        linears = kind(layers)
        if isinstance(linears, PackedLinears):
            linears.refresh()
        out = x.new_empty(len(x), linears.num_out)
        residual = torch.randn_like(out)
        linears.forward(widened(x, linears.spare), out, add_to=residual)
        torch.testing.assert_close(out, reference(x, layers) + residual, rtol=1e-12, atol=1e-12)


def test_low_precision_is_no_worse_than_the_layers_one_by_one() -> None:
    generator = torch.Generator().manual_seed(1)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    x, grad = normal(64, 96).bfloat16(), normal(64, 160).bfloat16()
    layers = [
        Linear((normal(m, 96) / 10).bfloat16(), None, LowRank(normal(8, 96) / 10, normal(m, 8) / 10, 2.0))
        for m in (96, 64)
    ]
    exact = [
        Linear(x.weight_MK.double(), None, LowRank(x.update.a_RK.double(), x.update.b_MR.double(), 2.0))
        for x in layers
        if x.update
    ]
    linears, masters = packed(layers), packed(exact).parameters
    plain = truth(x, layers, linears.parameters, grad)
    mine = outcome(linears, x, grad)
    right = truth(x.double(), exact, masters, grad.double())
    for ours, theirs, true in zip((mine[0], mine[1], *mine[2]), plain, right, strict=True):
        assert (ours.double() - true).norm() <= 2 * (theirs.double() - true).norm()


def test_weights_live_in_the_buffer_and_move_out_again() -> None:
    _, layers = cases()[8]
    assert any(layer.update for layer in layers)
    values = [layer.weight_MK.clone() for layer in layers]
    linears = packed(layers)
    for layer, value in zip(layers, values, strict=True):
        assert torch.equal(layer.weight_MK, value)
        assert layer.weight_MK.untyped_storage().data_ptr() == linears.buffer.untyped_storage().data_ptr()
    linears.unpack()
    for layer, value in zip(layers, values, strict=True):
        assert torch.equal(layer.weight_MK, value) and layer.weight_MK.is_contiguous()
        assert layer.weight_MK.untyped_storage().data_ptr() != linears.buffer.untyped_storage().data_ptr()


def test_refresh_sees_updates_through_another_view_and_replaced_weights() -> None:
    x, layers = cases()[8]
    linears = packed(layers)
    update = next(layer.update for layer in layers if layer.update)
    view = update.b_MR.detach().view(-1)  # its own version counter, as an optimizer's flat buffer has
    view.mul_(-2)
    layers[0].weight_MK.data = torch.randn_like(layers[0].weight_MK)
    linears.refresh()
    out = x.new_empty(len(x), linears.num_out)
    linears.forward(widened(x, linears.spare), out)
    torch.testing.assert_close(out, reference(x, layers).detach(), rtol=1e-12, atol=1e-12)
