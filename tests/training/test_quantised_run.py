"""Runs beside a base in few bits: they learn, go on exactly, answer, and become one model again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.cli.export import command as export
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.models.inference import load_for_inference
from luthier.models.quantised.load import quantised
from luthier.runs.metrics import read_metrics, series
from luthier.training.run import run
from resuming import same_weights, stopped_and_resumed
from tiny_runs import save_tiny_model, tiny_config, try_example
from training_parts import ROOT

IDS = torch.arange(4, 40)[None]


def config(folder: Path, name: str, **changes: Any) -> Config:
    return tiny_config(folder, name, **{"quant": {"name": "nf4"}, "lora": {"dropout": 0.0}, **changes})


def test_a_run_learns_and_its_model_is_what_was_trained(tmp_path: Path) -> None:
    said: list[str] = []
    result = run(config(tmp_path, "run"), say=said.append)
    rows = read_metrics(result.folder / "metrics.jsonl")
    (_, first), *_, (_, last) = series(rows, "train", "loss")
    (_, early), *_, (_, late) = series(rows, "eval", "loss")
    assert first and last and early and late and last < first - 0.3 and late < early
    assert any("nf4: " in line and "bits each" in line for line in said)
    assert any(line.startswith("2 of 2 layers fused") for line in said)
    answering = load_for_inference(str(result.folder)).model
    assert len(quantised(answering)) == 14
    expected = answering(IDS).logits
    export(result.folder, "merged", None)
    merged = load_for_inference(str(result.folder / "merged")).model
    assert not quantised(merged)
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    export(result.folder, "merged", result.folder / "original", "original")
    other = load_for_inference(str(result.folder / "original")).model
    assert (other(IDS).logits - expected).norm() > 1e-2 * expected.norm()
    base, plain = (load_file(tmp_path / "model" / "model.safetensors"), other.state_dict())
    untouched = "model.layers.0.input_layernorm.weight"
    assert torch.equal(base[untouched], plain[untouched])
    with pytest.raises(ConfigError, match=r"--base is 'new'; known: trained, original"):
        export(result.folder, "merged", tmp_path / "x", "new")


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_products_in_8_bits_learn_like_decoded_weights(name: str, tmp_path: Path) -> None:
    losses = []
    for products in (False, True):
        said: list[str] = []
        told = config(tmp_path, f"run-{products}", quant={"name": name, "products": products})
        result = run(told, say=said.append)
        assert any(line.startswith("2 of 2 layers fused") for line in said)
        losses.append(
            [loss for _, loss in series(read_metrics(result.folder / "metrics.jsonl"), "train", "loss")]
        )
    decoded, in_8_bits = (torch.tensor(found) for found in losses)
    assert in_8_bits[-1] < in_8_bits[0] - 0.3 and not torch.equal(decoded, in_8_bits)
    torch.testing.assert_close(in_8_bits, decoded, rtol=0.02, atol=0.02)
    with pytest.raises(ConfigError, match=r"quant\.products is true, but quant\.name: nf4"):
        config(tmp_path, "wrong", quant={"name": "nf4", "products": True})


def test_weights_that_no_adapter_is_on_are_merged_as_they_were_stored(tmp_path: Path) -> None:
    result = run(config(tmp_path, "run", lora={"target": ["q_proj"], "dropout": 0.0}), say=lambda line: None)
    export(result.folder, "merged", None)
    merged = load_for_inference(str(result.folder / "merged")).model
    expected = load_for_inference(str(result.folder)).model(IDS).logits
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_going_on_is_exact(tmp_path: Path) -> None:
    whole = run(config(tmp_path, "whole"), say=lambda line: None)
    resumed = stopped_and_resumed(config(tmp_path, "stopped"))
    assert same_weights(whole, resumed)
    assert whole.eval_loss == resumed.eval_loss


def test_what_cannot_work_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"quant\.name is nf4, which stores frozen weights.*add the section lora"
    ):
        tiny_config(tmp_path, "full", quant="nf4", lora=...)
    with pytest.raises(ConfigError, match=r'quant\.name is "nf5"; known: .*nf4.*did you mean'):
        config(tmp_path, "typo", quant={"name": "nf5"})
    with pytest.raises(ConfigError, match=r"quant\.block"):
        config(tmp_path, "block", quant={"name": "nf4", "block": 63})
    with pytest.raises(ConfigError, match=r"unknown key quant\.double; only"):
        config(tmp_path, "other", quant={"name": "int8", "double": True})
    short = config(tmp_path, "short", quant="nf4").quant
    assert short is not None and short.options == {"double": True, "block": 64}


def test_the_example_trains(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    result = try_example(ROOT / "examples" / "qwen3-0.6b-qlora.yaml", model, tmp_path)
    assert (result.trained / "adapter_model.safetensors").is_file()
