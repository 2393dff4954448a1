"""Weights rounded while they are trained: to the bit what is stored later, and gradients that pass straight through."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import luthier.kernels.quant
from kernel_parts import DTYPES
from luthier.config.plugins import known_plugins, load_plugin
from luthier.kernels.linears import Linear, LowRank
from luthier.kernels.quant.base import Scheme, store
from luthier.kernels.rounded_linears import RoundedLinears
from luthier.kernels.rounding import INPUTS, Inputs, Rounding, int8_by_token, q8_by_block, rounded_linear
from luthier.kernels.workspace import Workspace

NAMES = sorted(known_plugins()["qat"])
GGUF = ("q4_0", "q8_0")


def scheme(name: str, **options: Any) -> Scheme:
    return load_plugin(luthier.kernels.quant, name)(**options)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_rounded_weight_is_what_a_stored_one_decodes_to(name: str, dtype: torch.dtype) -> None:
    for shape in ((64, 256), (5, 192)):
        weight = normal(*shape)
        weight[0] = 0
        made = scheme(name).rounded(weight, torch.empty(shape, dtype=dtype))
        assert torch.equal(made, store(scheme(name), weight, dtype).weight())


@pytest.mark.parametrize("kind", ["normal", "bfloat16", "tiny", "huge", "ties", "zeros"])
@pytest.mark.parametrize("name", GGUF)
def test_codes_and_values_are_those_of_the_gguf_package(name: str, kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    weight = normal(96, 512)
    if kind == "bfloat16":
        weight = weight.bfloat16().float()
    elif kind == "tiny":
        weight = weight * 1e-6
    elif kind == "huge":
        weight = weight * 1e4
    elif kind == "ties":
        weight = (weight * 8).round() / 8  # several of a block are as large as the largest, of either sign
    elif kind == "zeros":
        weight = weight * (torch.arange(512) // 32 % 2)
    of = gguf.GGMLQuantizationType[name.upper()]
    packed = gguf.quants.quantize(weight.numpy(), of)
    theirs = torch.from_numpy(gguf.quants.dequantize(packed, of))
    ours = scheme(name)
    parts = ours.encode(weight)
    assert torch.equal(ours.rounded(weight, torch.empty_like(weight)), theirs)
    assert torch.equal(ours.decode(parts, torch.empty_like(weight)), theirs)
    scale = parts["scale"].numpy().view(np.uint8).reshape(-1, 2)
    codes = parts["codes"].numpy().view(np.uint8).reshape(len(scale), -1)
    assert np.array_equal(np.concatenate([scale, codes], 1).reshape(96, -1), packed)


def test_what_was_rounded_once_stays() -> None:
    weight = scheme("q4_0").rounded(normal(32, 256), torch.empty(32, 256))
    assert torch.equal(scheme("q4_0").rounded(weight, torch.empty_like(weight)), weight)


def test_inputs_in_8_bits() -> None:
    x = normal(7, 64, seed=1)
    x[0], x[1] = 0, 3.0
    x[2] = x[2].abs() + 1
    found = int8_by_token(x)
    step = (x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)) / 255
    assert not found[0].any() and ((found - x).abs() <= 0.501 * step[:, None] + 1e-6).all()
    assert all(len(row.unique()) <= 256 for row in found)
    blocks = q8_by_block(x)
    assert ((blocks - x).abs() <= 0.51 / 127 * x.abs().amax(1, keepdim=True) + 1e-6).all()
    assert torch.equal(blocks, scheme("q8_0").rounded(x, torch.empty_like(x)))
    assert torch.equal(q8_by_block(x[:, :33]), x[:, :33])


def straight(value: Tensor, rounded: Tensor) -> Tensor:
    """The rounded value, with the gradient of the value."""
    return value + (rounded - value).detach()


def plain(layer: Linear) -> Tensor:
    """Its weight, which is not stored."""
    assert isinstance(layer.weight_MK, Tensor)
    return layer.weight_MK


def oracle(x: Tensor, layer: Linear, rounding: Rounding) -> Tensor:
    total = plain(layer).float()
    if (update := layer.update) is not None:
        a, b = torch.cat(update.all_a), torch.cat(update.all_b, 1)
        total = total + (b @ a) * update.scale
    total = straight(total, rounding.scheme.rounded(total.detach(), torch.empty_like(total)))
    y = straight(x, rounding.seen(x.detach())) @ total.T
    return y if layer.bias_M is None else y + layer.bias_M


def layers_of(kind: str, bias: bool, start: bool) -> list[Linear]:
    """Two layers of 64 inputs: all weights trained, adapters, or one of them with an adapter and one as it is."""
    made = []
    for number, num_out in enumerate((24, 40)):
        weight = normal(num_out, 64, seed=number).requires_grad_(kind == "whole")
        bias_M = normal(num_out, seed=5 + number).requires_grad_(kind == "whole") if bias else None
        update = None
        if kind == "adapters" or (kind == "one" and number == 0):
            a, b = normal(3, 64, seed=8 + number), normal(num_out, 3, seed=9 + number)
            begun = (normal(3, 64, seed=3), normal(num_out, 3, seed=4)) if start else None
            update = LowRank(a.requires_grad_(), b.requires_grad_(), 0.7, begun)
        made.append(Linear(weight, bias_M, update))
    return made


def trained_of(layers: list[Linear]) -> list[Tensor]:
    found: list[Tensor | None] = []
    for layer in layers:
        assert isinstance(layer.weight_MK, Tensor)
        found += [
            layer.weight_MK,
            layer.bias_M,
            *((layer.update.a_RK, layer.update.b_MR) if layer.update else ()),
        ]
    return [tensor for tensor in found if tensor is not None and tensor.requires_grad]


GRID = list(product(("whole", "adapters", "one"), (False, True), (False, True), (None, *INPUTS)))


@pytest.mark.parametrize("kind,bias,start,inputs", GRID)
def test_gradients_pass_straight_through(kind: str, bias: bool, start: bool, inputs: Inputs | None) -> None:
    """Each layer alone and both stacked, against the definition that autograd differentiates."""
    rounding, layers = Rounding(scheme("q4_0"), inputs), layers_of(kind, bias, start)
    x, trained = normal(11, 64, seed=20).requires_grad_(), trained_of(layers)
    expected = torch.cat([oracle(x, layer, rounding) for layer in layers], 1)
    grad = normal(*expected.shape, seed=21)
    theirs = torch.autograd.grad(expected, [x, *trained], grad)
    alone = []
    for layer in layers:
        update, weight = layer.update, layer.weight_MK
        assert isinstance(weight, Tensor)
        factors = (torch.cat(update.all_a), torch.cat(update.all_b, 1), update.scale) if update else None
        alone.append(rounded_linear(x, weight, layer.bias_M, rounding, factors))
    ours = torch.autograd.grad(torch.cat(alone, 1), [x, *trained], grad)
    torch.testing.assert_close(torch.cat(alone, 1), expected)
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)

    group = RoundedLinears(layers, rounding, Workspace())
    wide_x, wide_grad = torch.zeros(11, 64 + group.spare), torch.zeros(11, 64 + group.spare)
    wide_x[:, :64], wide_grad[:, :64] = x.detach(), grad
    with torch.no_grad():
        out = group.forward(wide_x, torch.empty(11, 64), add_to=torch.ones(11, 64))
        torch.testing.assert_close(out, expected.detach() + 1)
        group.input_gradient(wide_grad, grad_x := torch.empty(11, 64))
        found = [grad_x, *group.parameter_gradients(wide_grad, wide_x)]
    assert [id(p) for p in group.parameters] == [id(p) for p in trained] and len(found) == len(theirs)
    for mine, their in zip(found, theirs, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)


def test_groups_share_a_buffer_and_see_what_has_changed() -> None:
    workspace, rounding = Workspace(), Rounding(scheme("q4_0"))
    groups = [RoundedLinears(layers_of("whole", False, False), rounding, workspace) for _ in range(2)]
    x = normal(3, 64)
    with torch.no_grad():
        first = groups[0].forward(x, torch.empty(3, 64)).clone()
        plain(groups[1].layers[0]).mul_(2)
        groups[1].forward(x, torch.empty(3, 64))
        assert torch.equal(groups[0].forward(x, torch.empty(3, 64)), first)
        plain(groups[0].layers[0]).mul_(2)
        groups[0].refresh()
        again = groups[0].forward(x, torch.empty(3, 64))
    assert not torch.equal(again[:, :24], first[:, :24]) and torch.equal(again[:, 24:], first[:, 24:])
    assert workspace.num_bytes == 64 * 64 * 4
