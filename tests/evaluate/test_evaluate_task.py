"""Evaluation against oracles: the loss of plain transformers, and answers of the run it is asked about."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import luthier
from luthier.cli.main import main
from luthier.data.chat import ChatTemplate
from luthier.data.prepare import prepare
from luthier.errors import ConfigError, ModelError
from luthier.evaluate.task import evaluate
from luthier.models.inference import Loaded, load_for_inference
from luthier.models.load import load_tokenizer
from tiny_runs import save_tiny_model, tiny_config, write_chats


def test_the_loss_is_that_of_plain_transformers(tmp_path: Path) -> None:
    model, data = save_tiny_model(tmp_path / "model"), write_chats(tmp_path / "test.jsonl", 12)
    found = evaluate(load_for_inference(str(model)), [data], metric_names=[], max_length=128)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    rows = prepare([data], ChatTemplate(load_tokenizer(str(model))), max_length=128)
    total, count = 0.0, 0
    for i in range(len(rows)):
        (segment,) = rows.example(i).segments
        ids = torch.tensor(segment.ids).long()
        with torch.no_grad():
            logp = torch.log_softmax(plain(ids[None]).logits[0, :-1], -1).gather(1, ids[1:, None])[:, 0]
        learned = torch.tensor(segment.weights)[1:] > 0
        total, count = total - float(logp[learned].sum()), count + int(learned.sum())
    assert found.loss == pytest.approx(total / count, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss)) and found.num_rows == 12


def test_a_run_and_its_base_differ_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = luthier.train(tiny_config(tmp_path), say=lambda text: None).folder
    losses = []
    for flags in ([], ["--base"]):
        command = [
            "evaluate",
            str(run),
            "--data",
            str(tmp_path / "test.jsonl"),
            "--rows",
            "3",
            "--json",
            *flags,
        ]
        capsys.readouterr()
        assert main([*command, "--answer-tokens", "4"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] < losses[1] - 0.1
    assert main(["evaluate", str(run), "--data", str(tmp_path / "test.jsonl"), "--metric", "exakt"]) == 2
    assert "exact_match" in capsys.readouterr().err


def test_what_cannot_be_measured_is_told_before_any_work(tmp_path: Path) -> None:
    loaded = load_for_inference(str(save_tiny_model(tmp_path / "model")))
    with pytest.raises(ConfigError, match="there is no metric 'bleuu'"):
        evaluate(loaded, [tmp_path / "x.jsonl"], metric_names=["bleuu"])
    bare = Loaded(loaded.model, loaded.tokenizer, None, loaded.eos_token_ids)
    with pytest.raises(ModelError, match="no chat template"):
        evaluate(bare, [tmp_path / "x.jsonl"])
