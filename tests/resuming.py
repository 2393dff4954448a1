"""Law 5 for trainers and for processes: killed and resumed is never killed."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.config.tree import Config
from luthier.errors import Interrupted
from luthier.runs.folder import RunFolder
from luthier.training.checkpoint import load_checkpoint, save_checkpoint
from luthier.training.loop import Trainer
from luthier.training.run import Result, run
from training_parts import trained_weights

KILLED = """
import os, signal, sys
import luthier
from luthier.training.loop import Trainer
step = Trainer.step
def killed(self, batches):
    report = step(self, batches)
    if report.step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return report
Trainer.step = killed
luthier.train(sys.argv[1], resume=bool(sys.argv[3:]))
"""
"""A process that runs a config (argument 1) and kills itself after a step (2), resumed if there is a third argument."""


def losses(trainer: Trainer, steps: range) -> list[float]:
    """The loss of each of these steps, which are taken."""
    return [trainer.step(trainer.source.step(step)).values["loss"] for step in steps]


def resumes_exactly(made: Callable[[], Trainer], folder: Path, num_steps: int) -> tuple[Trainer, list[float]]:
    """Asserts that a trainer which goes on after half of the steps has, to the bit, the losses and weights of one that
    takes them all. Returns that one, and its losses.
    """
    straight, stopped, resumed = made(), made(), made()
    half = num_steps // 2
    whole = losses(straight, range(num_steps))
    losses(stopped, range(half))
    path = save_checkpoint(stopped, RunFolder(folder), "tiny")
    assert path is not None
    load_checkpoint(resumed, path)
    assert losses(resumed, range(half, num_steps)) == whole[half:]
    one, two = trained_weights(straight), trained_weights(resumed)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    return straight, whole


def stopped_and_resumed(config: Config, step: int = 5) -> Result:
    """What a run ends with that got SIGTERM after this step and was gone on with."""
    original = Trainer.step

    def stopping(self: Trainer, batches: Any) -> Any:
        report = original(self, batches)
        if report.step == step:
            signal.raise_signal(signal.SIGTERM)
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        with pytest.raises(Interrupted):
            run(config, say=lambda line: None)
    return run(config, resume=True, say=lambda line: None)


def same_weights(one: Result, two: Result) -> bool:
    """Whether two runs saved the same adapter, or the same model, to the bit."""
    (file,) = (path.name for path in one.trained.glob("*model.safetensors"))
    mine, theirs = (load_file(result.trained / file) for result in (one, two))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
