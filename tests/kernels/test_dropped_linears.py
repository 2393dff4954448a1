"""Stacked layers whose updates drop inputs are the layers one by one with the same mask: outputs, every gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels import lengths, linears
from luthier.kernels.lengths import LengthenedLinears
from luthier.kernels.linears import Linear, Linears, PackedLinears

CASES: list[tuple[type, Callable[..., Tensor], Tensor, list[Linear]]] = [
    *((PackedLinears, linears.reference, x, layers) for x, layers in linears.cases()),
    *((LengthenedLinears, lengths.reference, x, layers) for x, layers in lengths.cases()),
]


def widened(x: Tensor, spare: int) -> Tensor:
    return torch.cat([x, torch.full((len(x), spare), torch.nan, dtype=x.dtype)], 1)


def made(kind: Any, layers: list[Linear]) -> Linears:
    for update in (layer.update for layer in layers if layer.update):
        for master in (update.a_RK, update.b_MR, update.magnitude_M):
            if master is not None:
                master.requires_grad_()
    group = kind(layers)
    group.dropout, group.training = 0.25, lambda: True
    group.refresh()
    return group


@pytest.mark.parametrize("case", range(len(CASES)))
def test_it_is_the_layers_one_by_one(case: int) -> None:
    kind, reference, x, layers = CASES[case]
    group = made(kind, layers)
    torch.manual_seed(case)
    mask = group.draw_mask(x)
    assert (mask is None) == (group.spare == 0)
    grad = torch.randn(len(x), group.num_out, dtype=x.dtype)
    wide_x, out = widened(x, group.spare), torch.full_like(grad, torch.nan)
    with torch.no_grad():
        group.forward(wide_x, out, mask=mask)
        wide_grad, grad_x = widened(grad, group.spare), torch.full_like(x, torch.nan)
        group.input_gradient(wide_grad, grad_x, mask)
        gradients = group.parameter_gradients(wide_grad, wide_x, mask=mask)
    leaf = x.clone().requires_grad_()
    expected = reference(leaf, layers, mask, 0.25)
    truth = torch.autograd.grad(expected, [leaf, *group.parameters], grad)
    for mine, theirs in zip((out, grad_x, *gradients), (expected.detach(), *truth), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_the_share_that_is_dropped_and_when() -> None:
    _, layers = next((x, layers) for x, layers in linears.cases() if all(layer.update for layer in layers))
    group = made(PackedLinears, layers)
    mask = group.draw_mask(torch.empty(4000, group.num_in))
    assert mask is not None and mask.dtype is torch.bool
    assert float(mask.float().mean()) == pytest.approx(0.75, abs=0.02)
    group.training = lambda: False
    assert group.draw_mask(torch.empty(4, group.num_in)) is None
