"""Runs that train an adapter of the library peft, from the config to the answer."""

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.cli.export import command as export
from luthier.config.tree import Config
from luthier.errors import ConfigError, ModelError
from luthier.models.inference import load_for_inference
from luthier.models.peft_adapters.held import peft_of
from luthier.rollout.native import NativeGenerator
from luthier.rollout.sampling import SamplingSettings
from luthier.runs.metrics import read_metrics, series
from luthier.training.run import run
from peft_parts import options, types
from resuming import same_weights, stopped_and_resumed
from tiny_runs import tiny_config

pytest.importorskip("peft")
IDS = torch.arange(4, 40)[None]
KINDS: dict[str, dict[str, Any]] = {
    "ia3": {},
    "adalora": {"target_r": 2, "init_r": 4, "tinit": 2, "tfinal": 2},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "pvera": {"r": 16},
}


def config(folder: Path, name: str, kind: str, **changes: Any) -> Config:
    section = {"type": kind, **KINDS[kind]}
    return tiny_config(folder, name, **{"lora": ..., "peft": section, "optim": {"lr": 3e-2}, **changes})


def losses(folder: Path, split: str = "train") -> list[float | None]:
    return [loss for _, loss in series(read_metrics(folder / "metrics.jsonl"), split, "loss")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_and_goes_on_exactly(kind: str, tmp_path: Path) -> None:
    said: list[str] = []
    whole = run(config(tmp_path, "whole", kind), say=said.append)
    assert any(line.startswith(f"{kind} of peft") for line in said)
    early, *_, late = losses(whole.folder, "eval")
    assert early is not None and late is not None and late < early
    resumed = stopped_and_resumed(config(tmp_path, "stopped", kind))
    assert losses(resumed.folder) == losses(whole.folder)
    assert same_weights(whole, resumed)


@pytest.mark.parametrize("kind", types())
@pytest.mark.filterwarnings("ignore")
def test_every_type_runs_from_the_config(kind: str, tmp_path: Path) -> None:
    """Two steps with all that a run does beside them: what layers save is measured, among others."""
    if kind == "adamss":
        pytest.importorskip("sklearn")
    changes: dict[str, Any] = {"lora": ..., "train": {"steps": 2}, "eval": {"samples": 0}}
    found = run(
        tiny_config(tmp_path, "short", peft={"type": kind, **options(kind)}, **changes), say=lambda line: None
    )
    first, second = losses(found.folder)
    assert first is not None and second is not None


@pytest.mark.parametrize("kind", ["ia3", "prompt_tuning", "prefix_tuning"])
def test_a_run_answers_and_is_exported(kind: str, tmp_path: Path) -> None:
    result = run(config(tmp_path, "run", kind), say=lambda line: None)
    loaded = load_for_inference(str(result.folder), dtype="float32")
    assert peft_of(loaded.model) is not None
    expected = loaded.model(IDS).logits
    generator = NativeGenerator(loaded.model, eos_token_ids=[])
    settings = SamplingSettings(max_new_tokens=5, temperature=0.0)
    prompts = [IDS[0, :9].tolist(), IDS[0, 20:24].tolist(), IDS[0].tolist()]
    for prompt, (found,) in zip(prompts, generator.generate(prompts, settings), strict=True):
        ids = [*prompt]
        for _ in range(5):  # greedy, without a cache
            ids.append(int(loaded.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert found.ids == ids[len(prompt) :]
    if kind != "ia3":
        with pytest.raises(ModelError, match=rf"{kind} learns what stands before the tokens"):
            export(result.folder, "merged", None)
        return
    export(result.folder, "merged", None)
    merged = load_for_inference(str(result.folder / "merged"), dtype="float32").model
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("peft", "changes", "said"),
    [
        ({"type": "ia4"}, {}, r'peft\.type is "ia4"; known: .*did you mean ia3\?'),
        ({"type": "lora"}, {}, "the section lora has it"),
        ({"type": "ia3", "target_module": ["q_proj"]}, {}, r"did you mean peft\.target_modules"),
        ({"type": "ia3", "fan_in_fan_out": 3}, {}, r"peft\.fan_in_fan_out is 3; ia3 expects true or false"),
        ({"type": "vera", "inference_mode": True}, {}, r"peft\.inference_mode is filled in by the run"),
        ({"type": "prompt_tuning"}, {}, r"peft\.num_virtual_tokens is missing"),
        ({"type": "ia3"}, {"lora": {"rank": 4}}, "lora and peft both say"),
        ({"type": "ia3"}, {"quant": {"name": "nf4"}}, "changes layers whose weights it must see"),
        ({"type": "ia3"}, {"qat": {"name": "q4_0"}}, "qat rounds weights that adapters of peft read"),
        ({"type": "ia3"}, {"model": {"new_tokens": ["<x>"]}}, r"model\.new_tokens have rows of their own"),
        ({"type": "vera"}, {"reference": {"sync_every": 2, "sync_alpha": 0.5}}, "no adapter of their rank"),
    ],
)
def test_what_cannot_work_is_told_before_anything_starts(
    peft: dict[str, Any], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    tiny_config(tmp_path)
    if "model" in changes:
        changes = {"model": {"name": str(tmp_path / "model"), **changes["model"]}}
    with pytest.raises(ConfigError, match=said):
        tiny_config(tmp_path, **{"lora": ..., "peft": peft, **changes})


@pytest.mark.parametrize(
    ("peft", "said"),
    [
        ({"type": "c3a", "block_size": 7}, "peft cannot make the adapter c3a on this model: .*factor"),
        ({"type": "adalora", "tinit": 50}, r"peft\.tinit is 50 .* no step between them"),
        ({"type": "adalora", "target_r": 12}, r"peft\.target_r is 12 and peft\.init_r 12"),
    ],
)
def test_what_peft_refuses_is_told_in_its_words(peft: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        run(tiny_config(tmp_path, "run", **{"lora": ..., "peft": peft}), say=lambda line: None)
