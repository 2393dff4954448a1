"""Groups of stored layers that decode into one buffer, one after the other, are the layers one by one."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from luthier.kernels.decoded_linears import DecodedLinears
from luthier.kernels.linears import Linear, Linears, cases, reference
from luthier.kernels.quant.base import Stored, store
from luthier.kernels.quant.int8 import INT8
from luthier.kernels.workspace import Workspace
from luthier.models.quantised.linear import QuantLinear

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def stored(layers: list[Linear], plain: tuple[int, ...] = ()) -> list[Linear]:
    """The same layers with stored weights, except some."""
    for layer in layers:
        for master in (layer.update.a_RK, layer.update.b_MR) if layer.update else ():
            master.requires_grad_()
    return [
        layer
        if number in plain or isinstance(layer.weight_MK, Stored)
        else replace(layer, weight_MK=store(INT8(), layer.weight_MK, torch.float64))
        for number, layer in enumerate(layers)
    ]


def widened(x: Tensor, spare: int) -> Tensor:
    return torch.cat([x, torch.full((len(x), spare), torch.nan, dtype=x.dtype)], 1)


def forward(linears: Linears, x: Tensor) -> tuple[Tensor, Tensor]:
    wide_x, out = widened(x, linears.spare), x.new_full((len(x), linears.num_out), torch.nan)
    with torch.no_grad():
        return linears.forward(wide_x, out), wide_x


def backward(linears: Linears, wide_x: Tensor, grad: Tensor) -> list[Tensor]:
    with torch.no_grad():
        wide_grad, grad_x = widened(grad, linears.spare), grad.new_empty(len(grad), linears.num_in)
        linears.input_gradient(wide_grad, grad_x)
        return [grad_x, *linears.parameter_gradients(wide_grad, wide_x)]


def truth(x: Tensor, layers: list[Linear], parameters: list[Tensor], grad: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = reference(x, layers)
    return [out.detach(), *torch.autograd.grad(out, [x, *parameters], grad)]


@pytest.mark.parametrize("plain", [(), (0,)])
@pytest.mark.parametrize("case", range(len(cases())))
def test_a_group_is_its_layers_one_by_one(case: int, plain: tuple[int, ...]) -> None:
    x, layers = cases()[case]
    layers = stored(layers, plain if len(layers) > 1 else ())
    linears = DecodedLinears(layers, Workspace())
    linears.refresh()
    grad = torch.randn(len(x), linears.num_out, dtype=x.dtype)
    out, wide_x = forward(linears, x)
    found = [out, *backward(linears, wide_x, grad)]
    for mine, theirs in zip(found, truth(x, layers, linears.parameters, grad), strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_groups_take_turns_in_one_buffer_and_updates_are_seen() -> None:
    workspace, groups = Workspace(), []
    for x, layers in [case for case in cases() if len(case[0])]:
        layers = stored(layers)
        groups.append((x, layers, DecodedLinears(layers, workspace)))
    for _ in range(2):  # the last group of the backward pass is the first of the next forward pass
        made = []
        for x, _, linears in groups:
            linears.refresh()
            out, wide_x = forward(linears, x)
            made.append((out, wide_x, torch.randn_like(out)))
        for (x, layers, linears), (out, wide_x, grad) in reversed(list(zip(groups, made, strict=True))):
            found = [out, *backward(linears, wide_x, grad)]
            for mine, theirs in zip(found, truth(x, layers, linears.parameters, grad), strict=True):
                torch.testing.assert_close(mine, theirs, **EXACT)
        with torch.no_grad():
            for _, _, linears in groups:
                for parameter in linears.parameters:
                    parameter.add_(0.1)
    size = max((g.num_out + g.spare) * (g.num_in + g.spare) for *_, g in groups)
    assert workspace.num_bytes == 8 * size


def test_what_is_held_is_written_only_after_others_used_the_buffer() -> None:
    workspace, written = Workspace(), []
    like = torch.empty(0)

    def hold(holder: str, size: int = 4) -> Tensor:
        return workspace.hold(
            "w", holder, size, like=like, fill=lambda b: written.append(holder) or b.fill_(1)
        )

    hold("a"), hold("a"), hold("b"), hold("a")
    assert written == ["a", "b", "a"]
    workspace.forget("w", "b")
    hold("a")
    assert written == ["a", "b", "a"]
    workspace.forget("w", "a")
    hold("a")
    assert written == ["a", "b", "a", "a"]
    hold("a", size=9)  # a larger buffer is a new one
    assert written == ["a", "b", "a", "a", "a"]
    workspace.clear()
    hold("a")
    assert len(written) == 6

    def fails(buffer: Tensor) -> None:
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        workspace.hold("w", "c", 4, like=like, fill=fails)
    hold("a")
    assert len(written) == 7


def test_a_stored_layer_has_the_gradient_of_its_decoded_weight() -> None:
    weight = torch.randn(5, 6, dtype=torch.float64)
    layer = QuantLinear(
        store(INT8(), weight, torch.float64), nn.Parameter(torch.randn(5, dtype=torch.float64))
    )
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    plain = layer.opened()
    torch.testing.assert_close(layer(x), plain(x).double(), rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(layer, (x,))
    with torch.no_grad():
        assert not layer(x).requires_grad
