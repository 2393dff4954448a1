"""AdamW against torch's own, over many steps; and what it does for 16-bit weights and on resume."""

import copy

import pytest
import torch
from torch import nn

from luthier.optim.adamw import AdamW
from luthier.optim.stepper import Stepper


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step)).to(
            next(model.parameters()).dtype
        )
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


def test_fifty_steps_equal_torch() -> None:
    ours, theirs = network(), network()
    built = AdamW(weight_decay=0.1, beta2=0.95).build(ours.named_parameters(), lr=1e-2)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    train(ours, built, 50)
    train(theirs, torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95)), 50)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


def test_sixteen_bit_weights_follow_a_master_that_keeps_small_updates() -> None:
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = AdamW().build([("w", weight)], lr=1e-4)  # far below bf16's resolution at 1
    for _ in range(50):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert optimizer.state[weight]["master"].dtype == torch.float32
    assert float(optimizer.state[weight]["master"][0, 0]) == pytest.approx(1 - 50e-4, rel=1e-3)
    assert float(weight[0, 0]) == pytest.approx(1 - 50e-4, abs=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_restored_it_goes_on_bit_for_bit(dtype: torch.dtype) -> None:
    straight, first = network(dtype), network(dtype)
    build = AdamW(weight_decay=0.1).build
    train(straight, build(straight.named_parameters(), 1e-2), 10)
    before = build(first.named_parameters(), 1e-2)
    train(first, before, 4)
    second = copy.deepcopy(first)
    after = build(second.named_parameters(), 1e-2)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert isinstance(after, Stepper)
    train(second, after, 6, first=4)
    for one, two in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
