"""How many tokens go through the model at once, where the config leaves it open."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from luthier.config.load import config_from_dict
from luthier.errors import RunError
from luthier.runs.folder import RunFolder
from luthier.training.build import _micro_tokens
from luthier.training.checkpoint import load_checkpoint, save_checkpoint
from training_parts import make_trainer


def micro_tokens(longest: int, device: str = "cpu", **train: Any) -> int:
    config = config_from_dict({"model": "m", "data": "d.jsonl", "train": train})
    data: Any = SimpleNamespace(train=SimpleNamespace(lengths=np.array([5, longest])), stream=None)
    return _micro_tokens(config, data, torch.device(device))


@pytest.mark.parametrize(
    ("per_step", "longest", "expected"),
    [(16384, 100, 2048), (16384, 2731, 3276), (4096, 2049, 4096), (384, 100, 384), (5000, 100, 2500)],
)
def test_a_step_keeps_its_size_and_its_longest_row(per_step: int, longest: int, expected: int) -> None:
    found = micro_tokens(longest, tokens_per_step=per_step)
    assert found == expected >= longest
    assert per_step - found < found * (per_step // found) <= per_step


def test_a_given_number_and_gpus_are_left_alone() -> None:
    assert micro_tokens(100, tokens_per_step=8192, tokens_per_micro_batch=1024) == 1024
    assert micro_tokens(100, device="cuda", tokens_per_step=16384) == 4096


def test_other_micro_batches_are_no_resume(tmp_path: Any) -> None:
    folder = RunFolder.create(tmp_path, "run", config_yaml="")
    trainer = make_trainer()
    path = save_checkpoint(trainer, folder, "base")
    assert path is not None
    other = make_trainer()
    other.source.micro_tokens += 1
    message = (
        rf"saved by a run with {trainer.source.micro_tokens} tokens in a micro-batch.*tokens_per_micro_batch"
    )
    with pytest.raises(RunError, match=message):
        load_checkpoint(other, path)
