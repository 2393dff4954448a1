"""Laws that every optimizer in the folder keeps. A new file is tested by existing."""

import copy
import io
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import luthier.optim
from luthier.config.plugins import describe, load_plugin
from luthier.optim.base import Algorithm
from luthier.optim.pieces import About
from luthier.optim.stepper import Stepper
from luthier.parallel.cluster import Cluster
from thread_ranks import on_ranks
from training_parts import make_trainer, trained_weights

NAMES = sorted(describe(luthier.optim))
SMALL: dict[str, dict[str, Any]] = {
    "galore": {"rank": 2, "update_every": 3, "scale": 10.0},
    "q_galore": {"rank": 2, "update_every": 3, "scale": 10.0, "window": 1},
    "apollo": {"rank": 2, "update_every": 3},
    "soap": {"update_every": 2},
}


def chosen(name: str, **options: Any) -> Algorithm:
    return load_plugin(luthier.optim, name)(**SMALL.get(name, {}), **options)


class Net(nn.Module):
    """A table, hidden matrices of both orientations, one that is large, a stack, a vector and two adapters."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        shapes = {
            "embed": (7, 6),
            "wide": (4, 9),
            "tall": (9, 4),
            "large": (80, 64),
            "stack": (2, 3, 4),
            "bias": (5,),
            "lora_A": (2, 6),
            "lora_B": (4, 2),
        }
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=draw).to(dtype)
            self.register_parameter(name, nn.Parameter(weight))
            weight = self.get_parameter(name)
            weight.grad_dtype = torch.float32  # type: ignore[attr-defined]

    def loss(self, step: int, without: str | None = None) -> Tensor:
        """Different every step; the embedding's last row takes no part."""
        total = torch.zeros(())
        for name, p in self.named_parameters():
            if name != without:
                part = p[:-1] if name == "embed" else p
                draw = torch.Generator().manual_seed(100 * step + p.numel())
                aim = 0.3 * torch.randn(part.shape, generator=draw)
                total = total + ((part.float() - aim) ** 2).sum()
        return total

    def start(self, algorithm: Algorithm, lr: float = 1e-2) -> Stepper:
        """The optimizer, which knows the table."""
        named = list(self.named_parameters())
        about = {id(p): About(name, i, name == "embed") for i, (name, p) in enumerate(named)}
        return algorithm.build(named, lr, about=about)


def train(model: Net, optimizer: Stepper, steps: range, late: str | None = None) -> None:
    """`late`: a weight that takes part from step 3 on."""
    for step in steps:
        model.loss(step, late if step < 3 else None).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("late", [None, "lora_A"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_saved_as_a_file_and_restored_it_goes_on_bit_for_bit(
    name: str, dtype: torch.dtype, late: str | None
) -> None:
    straight, first = Net(dtype), Net(dtype)
    train(straight, straight.start(chosen(name, weight_decay=0.1)), range(9), late)
    before = first.start(chosen(name, weight_decay=0.1))
    train(first, before, range(5), late)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    second = Net(dtype)
    second.load_state_dict(first.state_dict())
    after = second.start(chosen(name, weight_decay=0.1))
    after.load_state_dict(torch.load(file, weights_only=True))
    train(second, after, range(5, 9), late)
    for one, two in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(straight.parameters(), first.parameters(), strict=True):
        assert not torch.equal(one, two)


@pytest.mark.parametrize("name", [name for name in NAMES if chosen(name).elementwise])
def test_end_to_end_or_apart_the_updates_are_the_same(name: str) -> None:
    flat, apart = Net(), Net()
    algorithm = chosen(name, weight_decay=0.1)
    optimizer = flat.start(algorithm)
    assert len(optimizer.gradients.homes) == 1
    named = [(n.replace("lora_", "w_"), p) for n, p in apart.named_parameters()]
    other = algorithm.build(named, 1e-2)
    assert not other.gradients.homes
    train(flat, optimizer, range(8), "lora_B")
    train(apart, other, range(8), "lora_B")
    for one, two in zip(flat.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_with_a_rate_of_zero_nothing_changes(name: str) -> None:
    model, before = Net(), Net()
    train(model, model.start(chosen(name, weight_decay=0.5), lr=0.0), range(4))
    for one, two in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_zero_move_nothing_and_decay_takes_matrices_only(name: str) -> None:
    for decay in (0.0, 0.5):
        model, before = Net(), Net()
        optimizer = model.start(chosen(name, weight_decay=decay), lr=0.1)
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
        for (key, one), two in zip(model.named_parameters(), before.parameters(), strict=True):
            if decay and key != "bias":
                # two or three decays of 5 %: SOAP's first step is none, schedule-free follows an average
                assert 0.82 < float(one.norm() / two.norm()) < 0.96, key
            else:
                assert torch.equal(one, two), key


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_falls_and_a_row_without_gradient_stays_finite(name: str) -> None:
    model = Net()
    optimizer = model.start(chosen(name), lr=0.02)
    before = float(model.loss(0))
    train(model, optimizer, range(40))
    assert float(model.loss(0)) < 0.9 * before
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    torch.testing.assert_close(model.get_parameter("embed")[-1], Net().get_parameter("embed")[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_that_are_foretold_are_those_of_the_states(name: str, dtype: torch.dtype) -> None:
    model = Net(dtype)
    optimizer = model.start(chosen(name))
    foretold = {id(p): optimizer.state_bytes(p) for p in model.parameters()}
    train(model, optimizer, range(1))
    for p in model.parameters():
        kept = sum(v.nbytes for key, v in optimizer.state[p].items() if key != "step")
        assert foretold[id(p)] == kept
    assert all(isinstance(v, Tensor) for state in optimizer.state.values() for v in state.values())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_left_as_they_are_and_versions_tell_of_updates(name: str) -> None:
    model = Net()
    optimizer = model.start(chosen(name, weight_decay=0.1))
    for step in range(2):
        model.loss(step).backward()
        before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        versions = [p._version for p in model.parameters()]
        optimizer.step()
        after = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
        assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))
        optimizer.zero_grad()


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_hold_the_same_weights(name: str) -> None:
    lock = threading.Lock()  # models are drawn from the one generator of the process

    def work(cluster: Cluster) -> dict[str, Tensor]:
        with lock:
            trainer = make_trainer(
                lora=False,
                cluster=cluster,
                optimizer=lambda ps: chosen(name).build([(str(i), p) for i, p in enumerate(ps)], 1e-3),
            )
        for step in range(3):
            trainer.step(trainer.source.step(step))
        return trained_weights(trainer)

    one, two = on_ranks(2, work)
    for key in one:
        assert torch.equal(one[key], two[key])


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_it_does_the_same(name: str) -> None:
    """What is drawn at random is drawn by the weight's number and step alone."""
    first, second = Net(), Net()
    torch.manual_seed(1)
    train(first, first.start(chosen(name)), range(5))
    torch.manual_seed(2)
    train(second, second.start(copy.deepcopy(chosen(name))), range(5))
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
