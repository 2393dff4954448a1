"""The examples of adapters train as they stand, with a tiny model of the same architecture in the model's place."""

from pathlib import Path

import pytest
import torch

import luthier
import tiny_models
from chat_samples import CHATML, byte_level
from luthier.runs.metrics import read_metrics
from training_parts import ROOT

FOLDER = ROOT / "examples" / "lora"
KINDS = {
    "experts": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "biases": ("qwen2", {}),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_it_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    kind, settings = KINDS.get(name, ("llama", {"tie_word_embeddings": True}))
    model = tiny_models.build(
        kind, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **settings
    )
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    steps = 16 if name == "restarts" else 3
    overrides = [f"model.name={tmp_path / 'model'}", f"train.steps={steps}", "train.tokens_per_step=512"]
    overrides += [f"run.root={tmp_path}", "run.name=tried", "data.cache=false", "data.max_length=512"]
    if name != "experts":
        overrides.append("lora.rank=4")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        result = luthier.train(f"{name}.yaml", overrides, say=lambda line: None)
    finally:
        torch.set_num_threads(threads)
    rows = [row for row in read_metrics(result.folder / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) == steps and any(row["grad_norm"] > 0 for row in rows)
    assert (result.trained / "adapter_config.json").is_file()
