"""Every mixture of what an adapter can have, fused and by the definition: outputs and all gradients, in fp64.

The definition is differentiated by autograd, and that is held to finite differences once for each mixture. It
itself is held to a layer whose weight was changed.
"""

from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from luthier.kernels import lengths, linears
from luthier.kernels.lengths import LengthenedLinears
from luthier.kernels.linears import Linear, Linears, LowRank, PackedLinears

TOKENS, INPUTS, OUTPUTS, DROPOUT = 5, 6, (4, 3, 2), 0.25


class Mixture(NamedTuple):
    """One point of the grid."""

    bias: str
    dropout: bool
    dora: bool
    ranks: str
    targets: str
    adapters: str


GRID = [
    Mixture(*point)
    for point in product(
        ("none", "frozen", "trained"),
        (False, True),
        (False, True),
        ("one", "pattern"),
        ("all", "part"),
        ("one", "started", "two", "two, one frozen"),
    )
]


def layers_of(mixture: Mixture, generator: torch.Generator) -> list[Linear]:
    """Three layers that read the same input."""

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    def update(outputs: int, rank: int, trained: bool, lengthened: bool, started: bool) -> LowRank:
        a_RK, b_MR = (
            normal(rank, INPUTS).requires_grad_(trained),
            normal(outputs, rank).requires_grad_(trained),
        )
        start = (normal(rank, INPUTS), normal(outputs, rank)) if started else None
        lengths_M = normal(outputs).abs().add(0.5).requires_grad_() if lengthened else None
        return LowRank(a_RK, b_MR, 1.5 / rank, start, lengths_M)

    found = []
    for number, outputs in enumerate(OUTPUTS):
        adapted = mixture.targets == "all" or number != 1
        rank = 2 if mixture.ranks == "one" else number + 1
        bias_M = None if mixture.bias == "none" else normal(outputs).requires_grad_(mixture.bias == "trained")
        first = update(outputs, rank, True, mixture.dora, mixture.adapters == "started") if adapted else None
        # the second is on other layers than the first where targets are in part, and always of another rank
        second = mixture.adapters.startswith("two") and (first is None or number == 0)
        trained = mixture.adapters == "two"
        further = (
            (update(outputs, 3, trained, False, False),)
            if second and not (mixture.dora and not first)
            else ()
        )
        found.append(Linear(normal(outputs, INPUTS), bias_M, first, further))
    return found


@pytest.mark.parametrize("mixture", GRID, ids=lambda m: "-".join(map(str, m)).replace(" ", ""))
def test_fused_is_the_definition(mixture: Mixture) -> None:
    generator = torch.Generator().manual_seed(GRID.index(mixture))
    layers = layers_of(mixture, generator)
    group: Linears = LengthenedLinears(layers) if mixture.dora else PackedLinears(layers)
    reference = lengths.reference if mixture.dora else linears.reference
    group.dropout, group.training = DROPOUT * mixture.dropout, lambda: True
    group.refresh()
    x = torch.randn(TOKENS, INPUTS, generator=generator, dtype=torch.float64)
    grad = torch.randn(TOKENS, group.num_out, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    mask = group.draw_mask(x)
    assert (mask is not None) == mixture.dropout
    with torch.no_grad():
        wide_x, out = widened(x, group.spare), torch.full_like(grad, torch.nan)
        group.forward(wide_x, out, mask=mask)
        wide_grad, grad_x = widened(grad, group.spare), torch.full_like(x, torch.nan)
        group.input_gradient(wide_grad, grad_x, mask)
        gradients = group.parameter_gradients(wide_grad, wide_x, mask=mask)
    assert {id(p) for p in group.parameters} == {id(t) for layer in layers for t in every_trained(layer)}
    leaf = x.clone().requires_grad_()
    expected = reference(leaf, layers, mask, group.dropout)
    truth = torch.autograd.grad(expected, [leaf, *group.parameters], grad)
    for mine, theirs in zip((out, grad_x, *gradients), (expected.detach(), *truth), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    if not mixture.dora:  # its lengths are constants by definition, which finite differences cannot know
        inputs = [leaf, *group.parameters]
        assert torch.autograd.gradcheck(
            lambda leaf, *_: reference(leaf, layers, mask, group.dropout), inputs, fast_mode=True
        )


@pytest.mark.parametrize(
    "mixture", [m for m in GRID if not m.dropout], ids=lambda m: "-".join(map(str, m)).replace(" ", "")
)
def test_the_definition_is_a_layer_with_changed_weight(mixture: Mixture) -> None:
    layers = layers_of(mixture, torch.Generator().manual_seed(1))
    x = torch.randn(TOKENS, INPUTS, dtype=torch.float64)
    reference = lengths.reference if mixture.dora else linears.reference
    expected = []
    for layer in layers:
        weight_MK = layer.weight_MK
        assert isinstance(weight_MK, Tensor)
        for update in layer.updates:
            for a_RK, b_MR in zip(update.all_a, update.all_b, strict=True):
                weight_MK = weight_MK + update.scale * b_MR @ a_RK
        if layer.update is not None and layer.update.magnitude_M is not None:
            weight_MK = torch.nn.functional.normalize(weight_MK) * layer.update.magnitude_M[:, None]
        expected.append(torch.nn.functional.linear(x, weight_MK, layer.bias_M))
    torch.testing.assert_close(reference(x, layers), torch.cat(expected, -1), rtol=1e-10, atol=1e-10)


def every_trained(layer: Linear) -> list[Tensor]:
    tensors = [t for u in layer.updates for t in (u.a_RK, u.b_MR, u.magnitude_M)] + [layer.bias_M]
    return [t for t in tensors if t is not None and t.requires_grad]


def widened(x: Tensor, spare: int) -> Tensor:
    return torch.cat([x, torch.full((len(x), spare), torch.nan, dtype=x.dtype)], 1)
