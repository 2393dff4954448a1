"""Evaluation against oracles: the loss of plain transformers, and answers of the run it is asked about."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import luthier
from luthier.cli.main import main
from luthier.data.chat import ChatTemplate
from luthier.data.prepare import prepare
from luthier.errors import ConfigError, DataError, ModelError
from luthier.evaluate.task import evaluate
from luthier.models.inference import Loaded, load_for_inference
from luthier.models.load import load_tokenizer
from tiny_runs import save_tiny_model, tiny_config, write_chats


def test_the_loss_is_that_of_plain_transformers(tmp_path: Path) -> None:
    model, data = save_tiny_model(tmp_path / "model"), write_chats(tmp_path / "test.jsonl", 12)
    found = evaluate(load_for_inference(str(model), dtype="float32"), [data], metric_names=[], max_length=128)
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
        evaluate(bare, [tmp_path / "x.jsonl"], metric_names=["exact_match"])


def test_plain_text_gives_perplexity_and_bits_per_byte_with_and_without_a_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, texts = save_tiny_model(tmp_path / "model"), ["one two three", "four zwölf", "five one two"]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    loaded = load_for_inference(str(model))
    bare = Loaded(loaded.model, loaded.tokenizer, None, loaded.eos_token_ids)
    found = evaluate(bare, [data])
    assert found.values == {} and found.num_rows == len(texts) and found.bits_per_byte is not None
    rows = prepare([data], ChatTemplate(loaded.tokenizer), max_length=128)
    examples = [rows.example(i) for i in range(len(rows))]
    tokens = sum(example.num_predictions for example in examples)
    size = float(sum(np.sum(example.columns["bytes"]) for example in examples))
    assert found.bits_per_byte == pytest.approx(found.loss * tokens / size / math.log(2), rel=1e-6)
    assert main(["evaluate", str(model), "--data", str(data), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["perplexity"] == pytest.approx(math.exp(found.loss)) and "exact_match" not in told
    assert told["bits_per_byte"] == pytest.approx(found.bits_per_byte)
    with pytest.raises(DataError, match="no question to answer"):
        evaluate(loaded, [data], metric_names=["exact_match"])
