"""Runs with other optimizers and with averages: what is told, what is saved, and going on exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import luthier
from luthier.config.load import load_config
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.optim.average import Average
from luthier.optim.stepper import Stepper, shown_weights
from luthier.runs.folder import RunFolder
from luthier.training.updates import build_algorithm
from tiny_runs import tiny_config
from training_parts import make_trainer, trained_weights

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "optimizers"
OWN = '''"""Plain gradient descent."""
from luthier.config.settings import settings
from luthier.optim.base import Algorithm


@settings
class Plain(Algorithm):
    """Down the gradient."""

    weight_decay: float = 0.0
    """None."""

    factor: float = 1.0
    """On the learning rate."""

    def start(self, weight, about):
        return {}

    def update(self, pieces, lr, weight_decay):
        for piece in pieces:
            piece.weight.sub_(piece.gradient, alpha=lr * self.factor)
'''


def short(folder: Path, name: str, **changes: Any) -> Config:
    """A run without held-out rows that saves every second step."""
    plain = {"eval": {"every": None, "samples": 0}, "checkpoint": {"every": 2}, "data": {"eval_path": None}}
    return tiny_config(folder, name, **{**plain, **changes})


def trained(config: Config) -> tuple[Path, list[str]]:
    said: list[str] = []
    return luthier.train(config, say=said.append).folder, said


def weights_of(run: Path) -> dict[str, Tensor]:
    found = next(iter([*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")]))
    return load_file(found)


def test_muon_says_which_weights_are_whose_and_its_own_move(tmp_path: Path) -> None:
    run, said = trained(short(tmp_path, "muon", lora=..., optim={"name": "muon", "lr": 1e-3}))
    assert any("Muon updates" in line and "AdamW updates" in line for line in said)
    assert (run / "model").is_dir()


def test_a_file_of_ones_own_is_an_optimizer_and_resumes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    optim = {"name": str(tmp_path / "mine.py"), "lr": 0.1, "factor": 2.0}
    run, _ = trained(short(tmp_path, "own", optim=optim))
    before = {name: tensor.abs().sum() for name, tensor in weights_of(run).items()}
    assert any(value > 0 for name, value in before.items() if "lora_B" in name)
    with pytest.raises(ConfigError, match="faktor"):
        luthier.train(short(tmp_path, "wrong", optim={**optim, "faktor": 1.0}), say=lambda text: None)


def test_an_own_file_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.py"):
        luthier.train(short(tmp_path, "none", optim={"name": "./mine.py"}), say=lambda text: None)


def test_schedule_free_refuses_a_schedule_and_a_second_average(tmp_path: Path) -> None:
    optim = {"name": "schedule_free", "lr": 1e-2}
    with pytest.raises(ConfigError, match="schedule: constant"):
        luthier.train(short(tmp_path, "falls", optim=optim), say=lambda text: None)
    twice = short(tmp_path, "twice", optim=optim, schedule="constant", train={"average": 0.9})
    with pytest.raises(ConfigError, match="average of its own"):
        luthier.train(twice, say=lambda text: None)


def averaged(folder: Path, name: str, kind: str, **changes: Any) -> Config:
    if kind == "schedule_free":
        return short(folder, name, optim={"name": kind, "lr": 1e-2}, schedule="constant", **changes)
    return short(folder, name, **{**changes, "train": {"average": 0.8, **changes.get("train", {})}})


@pytest.mark.parametrize("kind", ["schedule_free", "average"])
def test_what_is_saved_is_the_average_and_a_resumed_run_is_the_same(tmp_path: Path, kind: str) -> None:
    whole, _ = trained(averaged(tmp_path, "whole", kind))
    config = averaged(tmp_path, "parts", kind)
    stopping = Stop(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("luthier.training.run.log_steps", stopping)
        with pytest.raises(KeyboardInterrupt):
            luthier.train(config, say=lambda text: None)
    resumed = luthier.train(config, resume=True, say=lambda text: None).folder
    one, two = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(one[name], two[name]) for name in one)
    last = RunFolder(whole).checkpoint(RunFolder(whole).saved_steps()[-1])
    in_checkpoint = load_file(next(iter(last.glob("adapter*.safetensors"))))
    assert all(torch.equal(one[name], in_checkpoint[name]) for name in one)
    state = torch.load(last / "trainer.pt", weights_only=True)["trained"]
    pairs = [
        (value, kept)
        for name, value in state.items()
        for key, kept in one.items()
        if name.rpartition(".layers.")[2] in key
    ]
    assert len(pairs) == len(one) and not any(torch.equal(value, kept) for value, kept in pairs)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_hold_settings_that_fit(path: Path) -> None:
    config = load_config(path)
    assert build_algorithm(config).weight_decay >= 0


class Stop:
    """A hook that ends the run by force after so many steps, as a kill would."""

    def __init__(self, steps: int):
        self.steps = steps

    def __call__(self, *args: Any) -> Any:
        def hook(trainer: Any, report: Any) -> None:
            if report.step == self.steps:
                raise KeyboardInterrupt

        return hook


@pytest.mark.parametrize("decay", [0.8, 1.0])
def test_an_average_is_the_weighted_mean_of_all_steps(decay: float) -> None:
    trainer = make_trainer(steps=6)
    parameters = [p for g in trainer.optimizer.param_groups for p in g["params"]]
    assert isinstance(trainer.optimizer, Stepper)
    trainer.optimizer.average = Average(parameters, decay, first=2)
    seen = []
    for step in range(6):
        trainer.step(trainer.source.step(step))
        seen.append([p.detach().double().clone() for p in parameters])
    weights = [decay ** (5 - step) for step in range(1, 6)]
    for index, parameter in enumerate(parameters):
        mean = sum(w * seen[step][index] for w, step in zip(weights, range(1, 6), strict=True)) / sum(weights)
        torch.testing.assert_close(
            shown_weights(trainer.optimizer)[parameter].double(), mean, rtol=1e-5, atol=1e-7
        )
    before = trained_weights(trainer)
    names = {id(p): name for name, p in trainer.policy.named_parameters()}
    shown = {names[id(p)]: weight for p, weight in shown_weights(trainer.optimizer).items()}
    assert any(not torch.equal(before[name], w) for name, w in shown.items())
