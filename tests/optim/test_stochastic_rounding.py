"""Weights of 16 bit without masters: rounding by chance has the right mean, loses nothing small, and can be resumed."""

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import luthier.optim
from luthier.config.plugins import describe, load_plugin
from luthier.errors import ConfigError
from luthier.optim.stepper import Stepper
from luthier.optim.stochastic import StochasticRounding
from luthier.runs.metrics import read_metrics, series
from luthier.training.run import run
from tiny_runs import tiny_config

NAMES = sorted(describe(luthier.optim))


def rounded(wide: Tensor, step: int, number: int = 0, seed: int = 0) -> Tensor:
    out = torch.empty(wide.shape, dtype=torch.bfloat16)
    StochasticRounding(seed).write(wide, out, number, step)
    return out


def test_the_mean_is_right_and_only_neighbours_come_out() -> None:
    wide = torch.randn(500, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 500)
    times = 3000
    made = torch.stack([rounded(wide, step).double() for step in range(times)])
    toward = (
        (wide.view(torch.int32) & ~0xFFFF).view(torch.float32).double()
    )  # cut off: the neighbour nearer to zero
    away = ((wide.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32).double()
    assert ((made == toward) | (made == away)).all()
    share = (wide.double() - toward) / (away - toward)
    spread = (away - toward).abs() * (share * (1 - share)).sqrt() / times**0.5
    error = (made.mean(0) - wide.double()).abs()
    assert (error <= 5 * spread + 1e-12 * wide.abs()).all()
    assert (error / spread.clamp(min=1e-30))[spread > 0].mean() < 1.2  # 0.8 if only chance is at work


def test_what_is_exact_stays_and_so_does_what_is_not_finite() -> None:
    exact = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.0**-120, float("inf"), float("-inf")])
    assert all(torch.equal(rounded(exact, step).float(), exact) for step in range(50))
    assert rounded(torch.tensor([float("nan"), torch.finfo(torch.float32).max]), 0).isnan().tolist() == [
        True,
        False,
    ]


def test_draws_depend_on_seed_weight_and_step_alone() -> None:
    wide = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    first = rounded(wide, 3, 2, 1)
    assert torch.equal(rounded(wide, 3, 2, 1), first)
    assert not any(torch.equal(rounded(wide, *other), first) for other in ((4, 2, 1), (3, 3, 1), (3, 2, 2)))


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        for name, shape in {"matrix": (64, 48), "vector": (64,)}.items():
            weight = nn.Parameter(torch.randn(shape, generator=draw).bfloat16())
            weight.grad_dtype = torch.float32  # type: ignore[attr-defined]
            self.register_parameter(name, weight)

    def start(self, name: str, by_chance: bool, lr: float, **options: object) -> Stepper:
        stepper = load_plugin(luthier.optim, name)(**options).build(self.named_parameters(), lr)
        stepper.rounding = StochasticRounding(0) if by_chance else None
        return stepper


def learn(model: Weights, optimizer: Stepper, steps: range) -> None:
    for step in steps:
        for number, parameter in enumerate(model.parameters()):
            draw = torch.Generator().manual_seed(100 * step + number)
            parameter.grad = 1 + torch.randn(parameter.shape, generator=draw)
        optimizer.step()
        optimizer.zero_grad()


def test_small_updates_arrive_as_with_masters() -> None:
    """AdamW with a rate far below what a bfloat16 weight near 1 can take: nearest rounding would not move at all."""
    moved = {}
    for by_chance in (False, True):
        model = Weights()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1.0)
        optimizer = model.start("adamw", by_chance, 2e-4, weight_decay=0.0)
        for step in range(300):
            learn(model, optimizer, range(step, step + 1))
        wide = [optimizer.state[p].get("master", p).float() for p in model.parameters()]
        moved[by_chance] = torch.cat([(weight - 1).reshape(-1) for weight in wide])
    with_masters, without = moved[False].mean(), moved[True].mean()
    assert with_masters < -0.02
    assert torch.isclose(without, with_masters, rtol=0.03), (without, with_masters)
    assert torch.tensor(1 - 2e-4).bfloat16() == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_works_without_masters_and_goes_on_exactly(name: str) -> None:
    with_masters, straight, stopped = Weights(), Weights(), Weights()
    learn(with_masters, with_masters.start(name, False, 1e-3), range(8))
    first = straight.start(name, True, 1e-3)
    learn(straight, first, range(8))
    for mine, theirs in zip(straight.parameters(), with_masters.parameters(), strict=True):
        assert not torch.equal(mine, theirs)
        assert (mine.float() - theirs.float()).norm() < 0.01 * theirs.float().norm()
    assert not any("master" in state for state in first.state.values())
    half = stopped.start(name, True, 1e-3)
    learn(stopped, half, range(4))
    torch.save(half.state_dict(), file := io.BytesIO())
    file.seek(0)
    resumed = stopped.start(name, True, 1e-3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    learn(stopped, resumed, range(4, 8))
    for mine, theirs in zip(stopped.parameters(), straight.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    bytes_with, bytes_without = (
        sum(model.start(name, by_chance, 1e-3).state_bytes(p) for p in model.parameters())
        for model, by_chance in ((Weights(), False), (Weights(), True))
    )
    assert bytes_with - bytes_without == 4 * (64 * 48 + 64)


def test_a_run_in_pure_bfloat16_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.training.model.pick_dtype", lambda *_: torch.bfloat16)  # on any CPU
    changes = {"lora": ..., "optim": {"lr": 2e-3, "stochastic_rounding": True}}
    result = run(tiny_config(tmp_path, "run", **changes), say=lambda line: None)
    losses = [
        loss for _, loss in series(read_metrics(result.folder / "metrics.jsonl"), "train", "loss") if loss
    ]
    assert losses[-1] < losses[0] - 0.3


def test_what_cannot_be_rounded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.stochastic_rounding is true, but adapters"):
        tiny_config(tmp_path, "lora", optim={"stochastic_rounding": True})
    model = {"name": str(tmp_path / "model"), "dtype": "float32"}
    wrong = tiny_config(tmp_path, "wide", lora=..., model=model, optim={"stochastic_rounding": True})
    with pytest.raises(ConfigError, match=r"weights are torch\.float32, which take updates exactly"):
        run(wrong, say=lambda line: None)
