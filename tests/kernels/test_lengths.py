"""Stacked layers with lengths (DoRA) are the layers one by one: outputs and every gradient."""

import pytest
import torch
from torch import Tensor

from luthier.kernels.lengths import LengthenedLinears, cases, reference


def widened(x: Tensor, spare: int) -> Tensor:
    return torch.cat([x, torch.full((len(x), spare), torch.nan, dtype=x.dtype)], 1)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("case", range(len(cases())))
def test_it_is_the_layers_one_by_one(case: int, again: bool) -> None:
    x, layers = cases()[case]
    for update in (layer.update for layer in layers if layer.update):
        for master in (update.a_RK, update.b_MR, update.magnitude_M):
            if master is not None:
                master.requires_grad_()
    stacked = LengthenedLinears(layers)
    grad = torch.randn(len(x), stacked.num_out, dtype=x.dtype, generator=torch.Generator().manual_seed(case))
    wide_x, out = widened(x, stacked.spare), torch.full_like(grad, torch.nan)
    with torch.no_grad():
        stacked.refresh()
        stacked.forward(wide_x, out)
        wide_grad, grad_x = widened(grad, stacked.spare), torch.full_like(x, torch.nan)
        stacked.input_gradient(wide_grad, grad_x)
        gradients = stacked.parameter_gradients(wide_grad, wide_x, None if again else out)
    leaf = x.clone().requires_grad_()
    expected = reference(leaf, layers)
    truth = torch.autograd.grad(expected, [leaf, *stacked.parameters], grad)
    for mine, theirs in zip((out, grad_x, *gradients), (expected.detach(), *truth), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_something_may_be_added_and_long_streams_go_in_parts() -> None:
    _, layers = cases()[0]
    stacked = LengthenedLinears(layers)
    stacked.refresh()
    x = torch.randn(1100, stacked.num_in, dtype=torch.float64)
    residual = torch.randn(1100, stacked.num_out, dtype=torch.float64)
    out = stacked.forward(widened(x, stacked.spare), torch.empty_like(residual), add_to=residual)
    torch.testing.assert_close(out, reference(x, layers) + residual, rtol=1e-10, atol=1e-10)
