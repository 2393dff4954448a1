"""A run with a teacher: it learns, evaluates and resumes, and refuses a teacher with another vocabulary at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import luthier
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.models.policy import Policy
from luthier.runs.metrics import read_metrics
from luthier.training.second_model import load_second
from tiny_models import tiny_llama
from tiny_runs import tiny_config


def distilling(folder: Path, name: str, **changes: Any) -> Config:
    """A short run with a teacher of the same vocabulary and another shape."""
    model = tiny_config(folder, name).model.name
    teacher = folder / "teacher"
    if not teacher.exists():
        tokenizer = AutoTokenizer.from_pretrained(model)
        # padded to a longer head than the student's, as larger models of a family often are
        larger = tiny_llama(
            seed=3, hidden_size=48, vocab_size=len(tokenizer) + 24, max_position_embeddings=512
        )
        larger.save_pretrained(teacher)
        tokenizer.save_pretrained(teacher)
    given = {"method": "distill", "teacher": str(teacher), "lora": ..., "optim": {"lr": 3e-3}, **changes}
    return tiny_config(folder, name, **given)


def train(config: Config, **options: Any) -> tuple[Path, list[str]]:
    told: list[str] = []
    return luthier.train(config, say=told.append, **options).folder, told


def values(run: Path, kind: str, name: str) -> list[float]:
    return [row[name] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == kind and name in row]


def test_a_run_learns_from_its_teacher_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.errors import Interrupted
    from luthier.training.loop import Trainer

    straight, told = train(distilling(tmp_path, "straight"))
    assert any(line.startswith("teacher ") and line.endswith("never trained") for line in told)
    held_out = values(straight, "eval", "divergence")
    assert held_out[-1] < held_out[0]
    assert values(straight, "eval", "nll_loss")

    original = Trainer.step

    def stopped(self: Trainer, batches: Any) -> Any:
        report = original(self, batches)
        if report.step == 5:
            self.interrupt("asked to")
        return report

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        with pytest.raises(Interrupted):
            train(distilling(tmp_path, "stopped"))
    resumed, _ = train(distilling(tmp_path, "stopped"), resume=True)
    one, two = (load_file(run / "model" / "model.safetensors") for run in (straight, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert values(resumed, "eval", "loss") == values(straight, "eval", "loss")


def test_a_teacher_with_another_vocabulary_is_refused_before_any_row_is_read(tmp_path: Path) -> None:
    config = distilling(tmp_path, "other")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    new = distilling(tmp_path, "new", model={"name": config.model.name, "new_tokens": ["<fresh>"]})
    size = len(tokenizer)
    with pytest.raises(
        ConfigError, match=rf"{size:,} tokens against {size + 1:,}.*leave out model.new_tokens"
    ):
        train(new)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"another vocabulary.*does not have it.*same family"):
        train(config)
    assert not list((tmp_path / "runs" / "other").glob("tokens/*"))


def test_a_teacher_is_as_precise_as_the_model_unless_it_says_otherwise(tmp_path: Path) -> None:
    policy = Policy(tiny_llama().double())
    for changes, dtype in (({}, torch.float64), ({"dtype": "float32"}, torch.float32)):
        section = {"name": str(tmp_path / "teacher"), **changes}
        config = distilling(tmp_path, "dtypes", teacher=section)
        assert config.teacher is not None
        other, notes = load_second(config, policy, "teacher", section["name"], config.teacher, grown=False)
        assert other.model.dtype is dtype
        assert not other.training and not any(p.requires_grad for p in other.parameters())
        assert all(note.startswith("teacher: ") for note in notes)
