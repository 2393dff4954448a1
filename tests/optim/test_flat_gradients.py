"""Adapters end to end in one buffer: the same updates, whatever happens to weights and gradients in between."""

import copy

import pytest
import torch
from torch import Tensor, nn

from luthier.optim.adamw import AdamW
from luthier.optim.gradients import Gradients, total_norm
from luthier.optim.stepper import Stepper


class Adapted(nn.Module):
    """Five small matrices by the names of adapters, or by others; and one vector."""

    def __init__(self, prefix: str = "lora_"):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        for number in range(5):
            weight = nn.Parameter(torch.randn(4, 3 + number, generator=draw))
            self.register_parameter(f"{prefix}{number}", weight)
        self.register_parameter("bias", nn.Parameter(torch.zeros(4)))

    def loss(self, step: int, without: int | None = None) -> Tensor:
        """Different every step; the parameter number `without` takes no part."""
        parts = [p for i, p in enumerate(self.parameters()) if i != without]
        return torch.stack([((p - 0.1 * step) ** 2).sum() for p in parts]).sum()


def built(model: nn.Module) -> Stepper:
    optimizer = AdamW(weight_decay=0.1).build(model.named_parameters(), lr=1e-2)
    assert isinstance(optimizer, Stepper)
    return optimizer


def train(model: Adapted, optimizer: torch.optim.Optimizer, steps: range, late: int | None = None) -> None:
    """`late`: a parameter that takes part from step 3 on."""
    for step in steps:
        model.loss(step, late if step < 3 else None).backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_equal(one: nn.Module, two: nn.Module, exactly: bool = True) -> None:
    for first, second in zip(one.parameters(), two.parameters(), strict=True):
        if exactly:
            assert torch.equal(first, second)
        else:
            torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("late", [None, 2])
def test_end_to_end_or_apart_the_updates_are_torchs(late: int | None) -> None:
    flat, loose, theirs = Adapted(), Adapted("weight_"), Adapted()
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    train(flat, built(flat), range(20), late)
    train(loose, built(loose), range(20), late)
    train(theirs, torch.optim.AdamW(groups, lr=1e-2, foreach=False), range(20), late)
    assert_equal(flat, theirs, exactly=False)
    assert_equal(loose, theirs, exactly=False)


def test_weights_and_gradients_share_one_storage_each_and_keep_it() -> None:
    model = Adapted()
    optimizer = built(model)
    adapters = [p for p in model.parameters() if p.dim() > 1]
    grads = [p.grad for p in adapters]
    train(model, optimizer, range(3))
    assert all(p.grad is g for p, g in zip(adapters, grads, strict=True))
    assert len({p.untyped_storage().data_ptr() for p in adapters}) == 1
    assert len({g.untyped_storage().data_ptr() for g in grads if g is not None}) == 1
    assert len(optimizer.gradients.tensors()) == 1 and model.bias.grad is None
    assert len({id(optimizer.state[p]["step"]) for p in adapters}) == 1


def test_what_never_had_a_gradient_is_not_decayed_and_what_had_one_goes_on() -> None:
    model = Adapted()
    optimizer = built(model)
    before = model.get_parameter("lora_2").detach().clone()
    train(model, optimizer, range(3), late=2)
    assert torch.equal(model.get_parameter("lora_2"), before)
    assert model.get_parameter("lora_2") not in optimizer.state
    train(model, optimizer, range(3, 5))
    moved = model.get_parameter("lora_2").detach().clone()
    model.loss(5, without=2).backward()
    optimizer.step()
    assert not torch.equal(model.get_parameter("lora_2"), moved)  # by what its mean remembers


@pytest.mark.parametrize("late", [None, 2])
def test_resumed_in_the_midst_it_goes_on_bit_for_bit(late: int | None) -> None:
    straight, first = Adapted(), Adapted()
    train(straight, built(straight), range(10), late)
    for stop in (2, 6):
        first = Adapted()
        before = built(first)
        train(first, before, range(stop), late)
        second = copy.deepcopy(first)
        after = built(second)
        saved = {n: {k: v.clone() for k, v in s.items()} for n, s in before.state_dict()["state"].items()}
        after.load_state_dict({"state": saved})  # as from a file, in which nothing is shared
        train(second, after, range(stop, 10), late)
        assert_equal(straight, second)


def test_gradients_and_weights_that_were_put_elsewhere_come_home() -> None:
    straight, other = Adapted(), Adapted()
    train(straight, built(straight), range(6))
    optimizer = built(other)
    for step in range(6):
        other.zero_grad(set_to_none=True)  # the module's, which knows nothing of homes
        moved = other.get_parameter("lora_1")
        moved.data = moved.data.clone()
        other.loss(step).backward()
        optimizer.step()
    assert_equal(straight, other)
    optimizer.zero_grad()
    other.zero_grad(set_to_none=True)
    optimizer.gradients.collect()
    assert float(optimizer.gradients.norm()) == 0


def test_versions_tell_of_every_update() -> None:
    model = Adapted()
    optimizer = built(model)
    versions = [p._version for p in model.parameters()]
    train(model, optimizer, range(1))
    assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))


def test_norm_scale_and_clear() -> None:
    model = Adapted()
    gradients = built(model).gradients
    model.loss(1).backward()
    gradients.collect()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(gradients.norm(), expected)
    gradients.scale(0.5)
    torch.testing.assert_close(gradients.norm(), expected / 2)
    gradients.clear()
    assert float(gradients.norm()) == 0


def test_held_gradients_stay_where_they_are() -> None:
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    parameter.grad_dtype = torch.float32  # pyright: ignore[reportAttributeAccessIssue]
    gradients = Gradients([parameter])
    gradients.hold()
    place = parameter.grad
    assert place is not None and place.dtype == torch.float32
    (2 * parameter.float()).sum().backward()
    assert place.tolist() == [2, 2, 2]
    gradients.clear()
    assert parameter.grad is place and place.tolist() == [0, 0, 0]


def test_ranks_agree_on_what_takes_part() -> None:
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    gradients = Gradients(parameters)
    parameters[0].sum().backward()
    asked: list[list[float]] = []

    def other_rank_had_the_second(mine: list[float]) -> list[float]:
        asked.append(mine)
        return [mine[0], mine[1] + 1, mine[2]]

    gradients.collect(other_rank_had_the_second)
    assert asked == [[1, 0, 0]] and [gradients.live(p) for p in parameters] == [True, True, False]
    assert parameters[1].grad is not None and parameters[1].grad.tolist() == [0, 0]
    assert len(gradients.tensors()) == 2


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (1023, 1024, 1025), (3_000_001, 7)])
def test_the_norm_is_that_in_fp64(sizes: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=draw) * 1e-3 for size in sizes]
    expected = sum(float(t.double().square().sum()) for t in tensors) ** 0.5
    assert float(total_norm(tensors)) == pytest.approx(expected, rel=1e-6)
