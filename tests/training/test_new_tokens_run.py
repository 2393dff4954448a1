"""Whole runs with new tokens in their rows: learned, resumed exactly, exported, used; with LoRA and without."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import luthier
from luthier.config.tree import Config
from luthier.errors import Interrupted
from luthier.training.loop import Trainer
from tiny_runs import tiny_config

NEW = {"<tool>": "call a tool", "</tool>": ""}
TOLD: list[str] = []


def config_for(folder: Path, name: str, **changes: Any) -> Config:
    """A run over rows whose answers are written between the new tokens."""
    small = {"eval": {"every": None, "samples": 0}, "checkpoint": {"every": None}, "train": {"steps": 4}}
    config = tiny_config(folder, name, **{**small, "lora": {"rank": 4, "dropout": 0.0}, **changes})
    for file in ("train.jsonl", "test.jsonl"):
        rows = [json.loads(line) for line in (folder / file).read_text().splitlines()]
        for row in rows:
            answer = row["messages"][1]
            if not answer["content"].startswith("<tool>"):
                answer["content"] = f"<tool>{answer['content']}</tool>"
        (folder / file).write_text("\n".join(map(json.dumps, rows)) + "\n")
    return config.model_copy(update={"model": config.model.model_copy(update={"new_tokens": NEW})})


def train(config: Config, **options: Any) -> Path:
    TOLD.clear()
    return luthier.train(config, say=TOLD.append, **options).folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_run_learns_keeps_and_resumes_them(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {} if kind == "adapter" else {"lora": ..., "optim": {"lr": 1e-3}}
    base = AutoTokenizer.from_pretrained(config_for(tmp_path, "whole", **changes).model.name)
    run = train(config_for(tmp_path, "whole", **changes))
    assert any("new tokens <tool>, </tool>: 1 from the words" in line for line in TOLD)
    assert any("40 kept" in line for line in TOLD), "rows may hold new tokens"
    found = weights(run / kind)
    tokenizer = AutoTokenizer.from_pretrained(run / kind)
    assert len(tokenizer) == len(base) + 2 and tokenizer.tokenize("<tool>a</tool>")[0] == "<tool>"

    config = config_for(tmp_path, "stopped", **changes)
    step = Trainer.step

    def stopped(self: Trainer, batches: Any) -> Any:
        report = step(self, batches)
        if report.step == 2:
            self.interrupt("test")
        return report

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        with pytest.raises(Interrupted):
            train(config)
    again = weights(train(config, resume=True) / kind)
    assert found.keys() == again.keys() and all(torch.equal(found[key], again[key]) for key in found)

    loaded = luthier.load(run)
    ids = torch.tensor([tokenizer("one two<tool>three</tool>").input_ids])
    if kind == "adapter":
        luthier.merge(run, tmp_path / "merged")
    folder = tmp_path / "merged" if kind == "adapter" else run / "model"
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        mine, theirs = loaded.model(input_ids=ids).logits, plain(input_ids=ids).logits
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    if kind == "adapter":  # PEFT grows the embeddings by the tokenizer that lies there
        with torch.no_grad():
            theirs = peft.AutoPeftModelForCausalLM.from_pretrained(run / "adapter")(input_ids=ids).logits
        torch.testing.assert_close(
            mine[..., : len(tokenizer)], theirs[..., : len(tokenizer)], rtol=1e-4, atol=1e-4
        )
    assert AutoTokenizer.from_pretrained(folder).tokenize("<tool>") == ["<tool>"]
    assert isinstance(luthier.load(run).answer("one two"), str)
