"""Folders for servers and the adapter alone: what they hold, the command, and what is refused beforehand."""

import json
import shlex
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from chat_samples import CHATML, SHARED
from export_runs import finished_run
from lora_models import difference
from luthier.cli.main import main
from luthier.export.serving.parsers import how_it_speaks
from luthier.export.serving.refusals import RANKS, limit_for, refused_parts

pytest.importorskip("gguf")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[5, 17, 3, 40, 8]])).logits.float()


def command(folder: Path) -> list[str]:
    first, change, last = (folder / "serve.sh").read_text().splitlines()
    assert first == "#!/bin/sh" and "cd " in change and last.endswith(' "$@"')
    return shlex.split(last.removesuffix(' "$@"'))[1:]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("trained", ["adapter", "model"])
def test_a_folder_holds_the_model_and_its_command(engine: str, trained: str, tmp_path: Path) -> None:
    folder, model = finished_run(tmp_path, trained=trained)
    assert main(["export", str(folder.path), "--to", engine, "--no-verify"]) == 0
    target = folder.path / engine
    assert difference(logits(AutoModelForCausalLM.from_pretrained(target)), logits(model)) < 1e-5
    words = command(target)
    assert words[0] == ("vllm" if engine == "vllm" else "python") and "." in words
    assert option(words, "--host") == "127.0.0.1" and option(words, "--dtype") == "float32"
    length = option(words, "--max-model-len" if engine == "vllm" else "--context-length")
    assert int(length) == model.config.max_position_embeddings
    assert option(words, "--served-model-name") == "tiny"
    assert (target / option(words, "--chat-template")).read_text() == CHATML
    assert shlex.join(words) in (target / "SERVE.md").read_text()
    assert (folder.model if trained == "model" else folder.adapter).is_dir()


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_adapter_beside_its_base(engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, model = finished_run(tmp_path)
    out = tmp_path / "served"
    assert (
        main(["export", str(folder.path), "--to", engine, "--adapter-only", "--out", str(out), "--no-verify"])
        == 0
    )
    words = command(out)
    assert option(words, "--max-lora-rank") == ("8" if engine == "vllm" else "2")
    assert "tiny=." in words and str(tmp_path / "base") in words
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert difference(logits(peft.PeftModel.from_pretrained(base, str(out))), logits(model)) < 1e-5
    config = folder.adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    again = ["export", str(folder.path), "--to", engine, "--adapter-only", "--no-verify"]
    assert main(again) == 2
    assert "cannot serve this adapter beside its base model: it has DoRA's lengths" in capsys.readouterr().err
    assert not (folder.path / engine).exists()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "LOHA"}, "of the type LOHA"),
        ({"modules_to_save": ["lm_head"]}, "whole modules of its own (lm_head)"),
        ({"trainable_token_indices": [3]}, "rows for single tokens"),
        ({"target_parameters": ["mlp.experts"]}, "stacked experts"),
        ({"bias": "all"}, "biases of its own"),
        ({"alpha_pattern": {"q": 3}}, "several ranks or alphas"),
        ({"r": 1024}, "its rank is 1024, and the highest that is served is 512"),
    ],
)
def test_what_servers_refuse_of_an_adapter(settings: dict[str, Any], reason: str) -> None:
    assert list(refused_parts({"r": 8, "bias": "none"})) == []
    (found,) = refused_parts({"r": 8, **settings})
    assert reason in found


def test_the_limit_of_the_rank_is_one_that_can_be_given() -> None:
    assert [limit_for(rank) for rank in (1, 8, 9, 100, 512)] == [8, 8, 16, 128, 512]
    assert all(limit_for(limit) == limit for limit in RANKS)


@pytest.mark.parametrize(
    ("name", "calls", "thoughts"),
    [
        ("qwen3", "hermes", "think"),
        ("qwen2_5", "hermes", None),
        ("llama3_1", "llama3", None),
        ("phi3", None, None),
    ],
)
def test_how_a_model_speaks_is_read_from_its_template(
    name: str, calls: str | None, thoughts: str | None
) -> None:
    file = SHARED / f"{name}.jinja"
    if not file.is_file():
        pytest.skip("the folder of templates is not here")
    found = how_it_speaks(file.read_text(), datetime(2026, 1, 1), {})
    assert (found.calls, found.thoughts) == (calls, thoughts)


def test_calls_in_a_way_of_their_own_are_told() -> None:
    call = "{% for c in m.tool_calls or [] %}CALL {{ c.function.name }}{% endfor %}"
    source = f"{{% for m in messages %}}{call}{{% endfor %}}"
    found = how_it_speaks(source, datetime(2026, 1, 1), {})
    assert found.calls is None and "no parser is known" in found.notes[0]
    assert "no chat template" in how_it_speaks(None, datetime(2026, 1, 1), {}).notes[0]


def test_the_adapter_alone_names_its_base_and_has_its_tokenizer(tmp_path: Path) -> None:
    folder, model = finished_run(tmp_path)
    for file in folder.adapter.glob("tokenizer*"):
        file.unlink()
    assert main(["export", str(folder.path), "--to", "adapter", "--no-verify"]) == 0
    target = folder.path / "adapter-export"
    assert json.loads((target / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path / "base"
    )
    assert (target / "tokenizer.json").is_file() and (target / "chat_template.jinja").is_file()
    found = peft.AutoPeftModelForCausalLM.from_pretrained(str(target))
    assert difference(logits(found), logits(model)) < 1e-5


def test_a_run_of_all_weights_has_no_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = finished_run(tmp_path, trained="model")
    assert main(["export", str(folder.path), "--to", "adapter", "--no-verify"]) == 2
    assert "tuned all weights, so it has no adapter" in capsys.readouterr().err
    assert main(["export", str(folder.path), "--to", "vllm", "--adapter-only", "--no-verify"]) == 2
    assert "Leave out --adapter-only" in capsys.readouterr().err
    shutil.rmtree(folder.model)
