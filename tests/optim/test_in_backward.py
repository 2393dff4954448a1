"""Updates within the backward pass are those after it, bit for bit, with every optimizer; gradients are freed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import luthier
import luthier.optim
from luthier.config.plugins import describe, load_plugin
from luthier.errors import ConfigError, RunError
from luthier.optim.in_backward import step_in_backward
from luthier.optim.stepper import Stepper
from luthier.runs.metrics import read_metrics, series
from luthier.training.loop import Trainer
from tiny_models import tiny_llama
from tiny_runs import tiny_config
from training_parts import make_trainer, trained_weights

NAMES = sorted(describe(luthier.optim))
SMALL: dict[str, dict[str, Any]] = {
    "galore": {"rank": 2, "update_every": 2},
    "apollo": {"rank": 2, "update_every": 2},
    "soap": {"update_every": 2},
}


def trainer_of(name: str, dtype: torch.dtype = torch.float32, micro_tokens: int = 128) -> Trainer:
    def build(parameters: list[nn.Parameter]) -> Stepper:
        for parameter in parameters:
            parameter.grad_dtype = torch.float32  # type: ignore[attr-defined]
        algorithm = load_plugin(luthier.optim, name)(**SMALL.get(name, {}), weight_decay=0.1)
        return algorithm.build([(str(i), p) for i, p in enumerate(parameters)], 1e-3)

    model = tiny_llama().to(dtype)  # type: ignore[arg-type]
    return make_trainer(
        model=model,
        lora=False,
        optimizer=build,
        max_grad_norm=None,
        micro_tokens=micro_tokens,
        tokens_per_step=128,
    )


def in_backward(trainer: Trainer) -> Trainer:
    assert isinstance(trainer.optimizer, Stepper)
    step_in_backward(trainer.optimizer, lambda: trainer.learner.in_last)
    return trainer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_losses_norms_and_weights_are_those_of_updates_afterwards(name: str, dtype: torch.dtype) -> None:
    after, within = trainer_of(name, dtype), in_backward(trainer_of(name, dtype))
    for step in range(4):
        one = after.step(after.source.step(step)).values
        two = within.step(within.source.step(step)).values
        assert (one["loss"], one["grad_norm"], one["lr"]) == (two["loss"], two["grad_norm"], two["lr"])
    mine, theirs = trained_weights(after), trained_weights(within)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    states = [t.optimizer.state_dict()["state"] for t in (after, within)]
    assert states[0].keys() == states[1].keys()


@pytest.mark.parametrize("micro_tokens", [64, 32])
def test_with_several_micro_batches_updates_wait_for_the_last(micro_tokens: int) -> None:
    after, within = (f(trainer_of("adamw", micro_tokens=micro_tokens)) for f in (lambda t: t, in_backward))
    for step in range(3):
        batches = within.source.step(step)
        assert len(batches) == 128 // micro_tokens
        assert after.step(after.source.step(step)).values["loss"] == within.step(batches).values["loss"]
    mine, theirs = trained_weights(after), trained_weights(within)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_gradient_is_gone_once_it_is_used_and_states_begin_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = in_backward(trainer_of("adamw"))
    optimizer = trainer.optimizer
    assert isinstance(optimizer, Stepper) and not optimizer.state
    most, sizes = [], []
    original = optimizer.step_now

    def watched(parameter: nn.Parameter) -> None:
        there = [p.numel() for p in trainer.parameters if p.grad is not None]
        most.append(sum(there))
        sizes.append(parameter.numel())
        original(parameter)

    monkeypatch.setattr(optimizer, "step_now", watched)
    trainer.step(trainer.source.step(0))
    assert len(sizes) == len(trainer.parameters) == len(optimizer.state)
    assert max(most) == max(p.numel() for p in trainer.parameters)
    assert all(p.grad is None for p in trainer.parameters)


def test_states_of_usual_updates_begin_after_the_first_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of("adamw")
    seen: list[int] = []
    trainer.learner.before_update = lambda: seen.append(len(trainer.optimizer.state))
    trainer.step(trainer.source.step(0))
    assert seen == [0] and len(trainer.optimizer.state) == len(trainer.parameters)


def test_running_out_of_memory_half_way_is_told_and_not_tried_again() -> None:
    trainer = in_backward(trainer_of("adamw"))
    calls = []

    def fail(parameter: Any) -> None:
        calls.append(parameter)
        raise torch.OutOfMemoryError("no more")

    trainer.parameters[0].register_post_accumulate_grad_hook(fail)
    with pytest.raises(RunError, match=r"optimizer_in_backward.*--resume"):
        trainer.step(trainer.source.step(0))
    assert len(calls) == 1


def settings(folder: Path, name: str, **train: Any) -> Any:
    train = {"max_grad_norm": None, "tokens_per_step": 256, "steps": 8, **train}
    plain = {"eval": {"every": None, "samples": 0}, "checkpoint": {"every": 4}, "data": {"eval_path": None}}
    return tiny_config(folder, name, lora=..., train=train, **plain)


def curve(result: Any) -> list[Any]:
    return series(read_metrics(result.folder / "metrics.jsonl"), "train", "loss")


def test_a_run_says_it_gives_the_same_losses_and_goes_on_exactly(tmp_path: Path) -> None:
    said: list[str] = []
    plain = luthier.train(settings(tmp_path, "plain"), say=lambda line: None)
    result = luthier.train(settings(tmp_path, "within", optimizer_in_backward=True), say=said.append)
    assert any("within the backward pass" in line for line in said)
    assert curve(plain) == curve(result)

    class Stop:
        def __call__(self, *args: Any) -> Any:
            def hook(trainer: Any, report: Any) -> None:
                if report.step == 6:
                    raise KeyboardInterrupt

            return hook

    again = settings(tmp_path, "again", optimizer_in_backward=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("luthier.training.run.log_steps", Stop())
        with pytest.raises(KeyboardInterrupt):
            luthier.train(again, say=lambda line: None)
    resumed = luthier.train(again, resume=True, say=lambda line: None)
    assert curve(resumed)[-4:] == curve(result)[-4:]


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"max_grad_norm": 1.0}, r"train\.max_grad_norm is 1.*set train\.max_grad_norm: null"),
        (
            {"tokens_per_micro_batch": 128},
            r"a step is one micro-batch; set train\.tokens_per_micro_batch: 256",
        ),
        ({"new_token_steps": 2}, "leave out one of the two"),
    ],
)
def test_what_needs_all_gradients_is_refused(train: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        settings(tmp_path, "run", optimizer_in_backward=True, **train)


def test_adapters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only adapters have any"):
        train = {"optimizer_in_backward": True, "max_grad_norm": None, "tokens_per_micro_batch": 512}
        tiny_config(tmp_path, train=train)
