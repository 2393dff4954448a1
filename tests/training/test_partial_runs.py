"""Whole runs with each way in models/tuning/: what moves, what is kept, what is saved, and going on exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import luthier
import luthier.models.tuning
from luthier.config.plugins import describe, load_plugin
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.models.inference import load_for_inference
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import read_metrics, series
from luthier.training.tune import chosen_weights
from tiny_runs import save_tiny_model, tiny_config, try_example
from training_parts import ROOT

WAYS = sorted(describe(luthier.models.tuning))
SMALL: dict[str, dict[str, Any]] = {
    "weights": {"layers": "last 1"},
    "expand": {"blocks": 1},
    "lisa": {"active_layers": 1, "every": 2},
    "badam": {"every": 3, "order": "ascending"},
    "spectrum": {"share": 0.5},
}
STATIC = [name for name in WAYS if not load_plugin(luthier.models.tuning, name).takes_turns]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def config(folder: Path, name: str, way: str, **changes: Any) -> Config:
    values = {
        "model": {"name": str(folder / "model"), "dtype": "float32"},  # whatever this processor multiplies
        "lora": ...,
        "tune": {"name": way, **SMALL.get(way, {})},
        "eval": {"every": None, "samples": 0},
        "data": {"eval_path": None},
        "checkpoint": {"every": 4},
    }
    return tiny_config(folder, name, **{**values, **changes})


def stop_after(steps: int) -> Any:
    """A hook that ends the run by force, as a kill would."""

    def hook(trainer: Any, report: Any) -> None:
        if report.step == steps:
            raise KeyboardInterrupt

    return lambda *args: hook


def losses(run: Path) -> list[float | None]:
    return [loss for _, loss in series(read_metrics(run / "metrics.jsonl"), "train", "loss")]


def started(settings: Config) -> tuple[dict[str, Tensor], set[str]]:
    """The weights that a run begins with, and the names of those that it may change."""
    assert settings.tune is not None
    model = AutoModelForCausalLM.from_pretrained(settings.model.name)
    way = load_plugin(luthier.models.tuning, settings.tune.name)(**settings.tune.options)
    way.reshape(model)
    chosen = chosen_weights(settings.tune, way, model, (), lambda line: None)
    return model.state_dict(), {n for n, p in model.named_parameters() if id(p) in chosen}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_learns_keeps_the_rest_and_goes_on_exactly(way: str, tmp_path: Path) -> None:
    settings = config(tmp_path, "whole", way)
    before, may_change = started(settings)
    said: list[str] = []
    whole = luthier.train(settings, say=said.append)
    assert any(line.startswith("partial fine-tuning") for line in said)
    curve = losses(whole.folder)
    first, last = curve[0], curve[-1]
    assert first is not None and last is not None and last < first - 0.1

    model = AutoModelForCausalLM.from_pretrained(whole.trained)
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    tied = {"lm_head.weight"} if "model.embed_tokens.weight" in may_change else set()
    assert changed and changed <= may_change | tied
    if way in STATIC:
        assert changed >= may_change
    ids = torch.arange(4, 40)[None]
    answering = load_for_inference(str(whole.folder), dtype="float32").model
    assert torch.equal(answering(ids).logits, model(ids).logits)

    stopped = config(tmp_path, "stopped", way)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("luthier.training.run.log_steps", stop_after(6))
        with pytest.raises(KeyboardInterrupt):
            luthier.train(stopped, say=lambda line: None)
    resumed = luthier.train(stopped, resume=True, say=lambda line: None)
    assert losses(resumed.folder)[-4:] == curve[-4:]
    other = load_file(resumed.trained / "model.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in other.items())


@pytest.mark.parametrize("way", WAYS)
def test_states_are_kept_of_open_weights_alone(way: str, tmp_path: Path) -> None:
    settings = config(tmp_path, "run", way, train={"steps": 4})
    folder = RunFolder(luthier.train(settings, say=lambda line: None).folder)
    state = torch.load(folder.checkpoint(4) / "trainer.pt", weights_only=True)
    kept = {state["names"][number].removeprefix("model.") for number in state["optimizer"]["state"]}
    _, may_change = started(settings)
    if way in STATIC:
        assert kept == may_change
    else:  # of the two layers one is open
        assert kept < may_change
        assert len({name.split(".")[2] for name in kept if ".layers." in name}) == 1
    if way == "badam":
        assert all(".layers.1." in name for name in kept)


def test_a_reference_is_the_model_before_and_a_block_of_its_own_can_be_the_embeddings(tmp_path: Path) -> None:
    tune = {"name": "badam", "every": 1, "order": "ascending", "embeddings": True}
    settings = config(tmp_path, "run", "badam", tune=tune, train={"steps": 3})
    before, _ = started(settings)
    result = luthier.train(settings, say=lambda line: None)
    after = load_file(result.trained / "model.safetensors")
    assert not torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_what_cannot_be_is_told_at_the_start(tmp_path: Path) -> None:
    faults: list[tuple[dict[str, Any], str]] = [
        ({"lora": {"rank": 4}}, "leave out one of the two"),
        ({"tune": {"layers": "lst 4"}}, "last 4"),
        ({"tune": {"name": "spectrum", "ranking": "nowhere.json"}}, "nowhere.json"),
        ({"tune": {"freeze": ["*"]}}, "chooses no weight"),
        ({"tune": {"embeddings": False}, "model": {"new_tokens": ["<tool>"]}}, "tune.embeddings: true"),
        ({"tune": {"name": "lisa", "layers": 2}}, "tune.layers"),
        ({"tune": "lissa"}, "did you mean lisa"),
    ]
    for changes, words in faults:
        if "model" in changes:
            changes["model"] = {"name": str(tmp_path / "model"), **changes["model"]}
        with pytest.raises(ConfigError, match=words):
            luthier.train(config(tmp_path, "run", "weights", **changes), say=lambda line: None)


def test_a_checkpoint_of_another_depth_is_no_start(tmp_path: Path) -> None:
    deeper = luthier.train(config(tmp_path, "deeper", "expand", train={"steps": 2}), say=lambda line: None)
    begin = {"start": str(deeper.folder)}
    with pytest.raises(ConfigError, match="added 1 layers"):
        luthier.train(config(tmp_path, "next", "weights", checkpoint=begin), say=lambda line: None)
    again = config(tmp_path, "again", "expand", checkpoint=begin, train={"steps": 4})
    assert len(losses(luthier.train(again, say=lambda line: None).folder)) == 2


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "partial").glob("*.yaml")), ids=lambda p: p.stem)
def test_examples_train(path: Path, tmp_path: Path) -> None:
    changes = {"expand": ["tune.blocks=1"], "last-layers": ["tune.layers=last 1"]}
    result = try_example(path, save_tiny_model(tmp_path / "model"), tmp_path, *changes.get(path.stem, ()))
    assert len(losses(result.folder)) == 2 and (result.trained / "config.json").is_file()


def test_every_way_has_an_example_and_a_line_in_the_docs() -> None:
    page = (ROOT / "docs" / "partial.md").read_text(encoding="utf-8")
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "examples" / "partial").glob("*.yaml")]
    for way in WAYS:
        assert f"| `{way}`" in page
        assert way == "weights" or any(f"name: {way}" in text for text in texts)
