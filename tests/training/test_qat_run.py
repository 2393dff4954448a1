"""Runs for few bits: they learn, go on exactly, speak as they will when they are stored, and lose little by it."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GgufConfig

from luthier.cli.export import command as export
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.kernels.quant.q4_0 import Q4_0
from luthier.kernels.quant.q8_0 import Q8_0
from luthier.models.inference import load_for_inference
from luthier.models.lora import merge_adapters
from luthier.models.rounded.linear import RoundedLinear
from luthier.runs.metrics import read_metrics, series
from luthier.training.run import run
from resuming import same_weights, stopped_and_resumed
from tiny_models import tiny_smollm
from tiny_runs import save_tiny_model, tiny_config, try_example, write_chats
from training_parts import ROOT

IDS = torch.arange(4, 40)[None]
KINDS: dict[str, dict[str, Any]] = {
    "adapter": {"lora": {"dropout": 0.0}},
    "whole": {"lora": ..., "optim": {"lr": 3e-3}},
    "inputs": {"lora": {"dropout": 0.0}, "qat": {"name": "q8_0", "inputs": "int8"}},
    "plain": {"lora": {"dropout": 0.0}, "model": {"fused": False}},
}


def config(folder: Path, name: str, kind: str = "adapter", **changes: Any) -> Config:
    settings: dict[str, Any] = {"qat": {"name": "q4_0"}, **KINDS[kind], **changes}
    if isinstance(settings.get("model"), dict):
        settings["model"] = {"name": str(folder / "model"), **settings["model"]}
    return tiny_config(folder, name, **settings)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_run_learns_and_goes_on_exactly(kind: str, tmp_path: Path) -> None:
    said: list[str] = []
    whole = run(config(tmp_path, "whole", kind), say=said.append)
    losses = series(read_metrics(whole.folder / "metrics.jsonl"), "train", "loss")
    assert losses[-1][1] and losses[0][1] and losses[-1][1] < losses[0][1] - 0.2
    assert any(line.startswith("trained for q") and "12 linear layers" in line for line in said)
    assert any(line.startswith("2 of 2 layers fused") for line in said) == (kind != "plain")
    resumed = stopped_and_resumed(config(tmp_path, "stopped", kind))
    assert series(read_metrics(resumed.folder / "metrics.jsonl"), "train", "loss") == losses
    assert same_weights(whole, resumed)


def test_chat_speaks_as_it_will_when_it_is_stored(tmp_path: Path) -> None:
    result = run(config(tmp_path, "run"), say=lambda line: None)
    answering = load_for_inference(str(result.folder)).model
    assert sum(isinstance(module, RoundedLinear) for module in answering.modules()) == 12
    expected = answering(IDS).logits
    export(result.folder, "merged", None)
    merged = load_for_inference(str(result.folder / "merged")).model
    exact = merged(IDS).logits
    with torch.no_grad():
        for name, weight in merged.named_parameters():
            if name.endswith("_proj.weight") and weight.shape[1] % 32 == 0:
                weight.copy_(Q4_0().rounded(weight, torch.empty_like(weight)))
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert (exact - expected).norm() > 1e-2 * expected.norm()


def test_what_cannot_work_is_refused_at_the_start(tmp_path: Path) -> None:
    for changes, told in (
        ({"lora": {"dropout": 0.1}}, r"lora\.dropout is 0\.1, but with qat"),
        ({"lora": {"dora": True, "dropout": 0.0}}, r"lora\.dora is true, but with qat"),
        ({"quant": "nf4"}, r"qat\.name is q4_0.*quant\.name: nf4.*leave out one"),
        ({"model": {"compile": True}}, r"model\.compile is true, but rounded layers"),
        ({"qat": {"name": "q4_1"}}, r'qat\.name is "q4_1"; known: .*q4_0'),
        ({"qat": {"name": "q4_0", "inputs": "int4"}}, r"qat\.inputs"),
        ({"qat": {"name": "q4_0", "group": 32}}, r"unknown key qat\.group"),
    ):
        with pytest.raises(ConfigError, match=told):
            config(tmp_path, "wrong", "adapter", **changes)
    short = config(tmp_path, "short", qat="q4_0").qat
    assert short is not None and short.name == "q4_0" and short.inputs is None and not short.options


@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_the_file_for_llama_cpp_is_what_was_trained(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    tokenizer = importlib.import_module("gguf_models").byte_merging("smollm")
    sizes = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "max_position_embeddings": 512,
    }
    tiny_smollm(**sizes).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_chats(tmp_path / "train.jsonl")
    write_chats(tmp_path / "test.jsonl", 10, seed=1)
    changes = {"qat": {"name": "q4_0", "skip": ["layers.0"]}}
    result = run(config(tmp_path, "run", kind, **changes), say=lambda line: None)
    export(result.folder, "gguf:q4_0", tmp_path / "model.gguf")
    assert "not what it learned to bear" not in capsys.readouterr().out
    how = GgufConfig(dequantize=True)
    found = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, quantization_config=how
    )
    expected = load_for_inference(str(result.folder)).model
    assert sum(isinstance(module, RoundedLinear) for module in expected.modules()) == 6
    if kind == "adapter":
        merge_adapters(expected)
    with torch.no_grad():
        table = expected.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        embeddings = table.weight
        embeddings.copy_(Q8_0().rounded(embeddings, torch.empty_like(embeddings)))
        for module in expected.modules():
            if type(module) is nn.Linear and module.weight is not embeddings:
                module.weight.copy_(module.weight.half())
        torch.testing.assert_close(found(IDS).logits, expected(IDS).logits, rtol=1e-4, atol=1e-4)
    export(result.folder, "gguf:q8_0", tmp_path / "other.gguf")
    assert "trained for q4_0, so q8_0 is not what it learned to bear" in capsys.readouterr().out


def test_the_example_trains(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    result = try_example(ROOT / "examples" / "qat-q4_0.yaml", model, tmp_path)
    assert (result.trained / "adapter_model.safetensors").is_file()
