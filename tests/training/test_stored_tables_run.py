"""Runs with embeddings and head in few bits: they learn, go on exactly, answer, and become one model again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from config_trainers import trainer_of
from luthier.cli.export import command as export
from luthier.cli.main import main
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.models.inference import load_for_inference
from luthier.models.quantised.load import quantised
from luthier.models.quantised.tables import stored_tables, table_weights
from luthier.runs.metrics import read_metrics, series
from luthier.training.run import run
from luthier.training.sketch import sketch
from resuming import resumes_exactly
from tiny_runs import save_tiny_model, tiny_config

IDS = torch.arange(4, 40)[None]


def config(folder: Path, name: str, *, tied: bool = True, **changes: Any) -> Config:
    if not (folder / "model").exists():
        tiny_config(folder)
        save_tiny_model(folder / "model", tied=tied)
    quant = {"name": "nf4", "embeddings": "mxfp4"}
    return tiny_config(folder, name, **{"quant": quant, "lora": {"dropout": 0.0}, **changes})


@pytest.mark.parametrize("tied", [True, False])
def test_a_run_learns_and_its_model_is_what_was_trained(tied: bool, tmp_path: Path) -> None:
    said: list[str] = []
    result = run(config(tmp_path, "run", tied=tied), say=said.append)
    rows = read_metrics(result.folder / "metrics.jsonl")
    (_, first), *_, (_, last) = series(rows, "train", "loss")
    assert first and last and last < first - 0.3
    assert any("; embeddings and head: " in line and " in 4.25 bits each" in line for line in said)
    assert any(line.startswith("2 of 2 layers fused") for line in said)
    answering = load_for_inference(str(result.folder)).model
    assert len(quantised(answering)) == 14 and len(stored_tables(answering)) == 2
    assert len(table_weights(answering)) == 2 - tied
    expected = answering(IDS).logits
    export(result.folder, "merged", None)
    merged = load_for_inference(str(result.folder / "merged")).model
    assert not quantised(merged) and not stored_tables(merged)
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    export(result.folder, "merged", result.folder / "original", "original")
    base, plain = (load_file(tmp_path / "model" / "model.safetensors"), load_file(
        result.folder / "original" / "model.safetensors"
    ))  # fmt: skip
    table = "model.embed_tokens.weight"
    assert torch.equal(base[table], plain[table])
    assert not torch.equal(base[table], load_file(result.folder / "merged" / "model.safetensors")[table])


def test_going_on_is_exact(tmp_path: Path) -> None:
    made = config(tmp_path, "run", eval=..., data={"eval_path": None})
    _, losses = resumes_exactly(lambda: trainer_of(made, tmp_path / "tokens"), tmp_path / "saved", 6)
    assert losses[-1] < losses[0]


def test_a_plan_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = config(tmp_path, "run", eval=..., data={"eval_path": None})
    drawn = sketch(made).fixed
    model = trainer_of(made, tmp_path / "tokens").policy.model
    (table,) = table_weights(model)
    stored = sum(module.stored.num_bytes for module in quantised(model).values())
    assert table.stored.num_bytes < drawn.stored <= stored + table.stored.num_bytes
    norms = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    assert norms <= drawn.frozen < norms + 100, "rotary frequencies, and no table"
    assert drawn.num_weights == sketch(tiny_config(tmp_path)).fixed.num_weights
    (tmp_path / "model" / "model.safetensors").unlink()
    asked = [
        "plan",
        f"model={tmp_path / 'model'}",
        f"data={tmp_path / 'train.jsonl'}",
        "lora.rank=4",
        "quant=nf4",
    ]
    assert main([*asked, "quant.embeddings=int8"]) == 0
    assert "weights in few bits" in capsys.readouterr().out
    assert main([*asked, "quant.embeddings=nf4"]) != 0
    assert "no whole blocks of 64" in capsys.readouterr().err


def test_what_cannot_work_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'quant\.embeddings is "nf5"; known: .*did you mean'):
        config(tmp_path, "typo", quant={"embeddings": "nf5"})
    with pytest.raises(ConfigError, match=r"quant\.embeddings is int8, .* no place for model\.new_tokens"):
        config(
            tmp_path,
            "tokens",
            quant={"embeddings": "int8"},
            model={"name": str(tmp_path / "model"), "new_tokens": {"<a>": ""}},
        )
    with pytest.raises(ConfigError, match=r"quant\.embeddings is int8, .*adapters of peft"):
        config(
            tmp_path,
            "peft",
            quant={"embeddings": "int8"},
            lora=...,
            peft={"type": "prompt_tuning", "num_virtual_tokens": 4},
        )
