"""`luthier export RUN --to ollama`: a GGUF beside a Modelfile that says what the run says."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.cli.main import main
from luthier.export.ollama.go import GoTemplate
from luthier.export.ollama.proof import ollama_values

pytest.importorskip("gguf")

from export_runs import finished_run

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Why?"},
]


def test_a_folder_for_ollama_has_the_model_and_its_own_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = finished_run(tmp_path)
    settings = {
        "eos_token_id": model.config.eos_token_id,
        "temperature": 0.6,
        "repetition_penalty": 1.1,
        "top_k": 20,
    }
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(settings))
    assert main(["export", str(folder.path), "--to", "ollama", "--type", "f32"]) == 0
    target = folder.path / "ollama"
    assert f"folder for Ollama: {target}\n" in (told := capsys.readouterr().out)
    assert "ollama create tiny -f" in told
    assert sorted(path.name for path in target.iterdir()) == ["Modelfile", "README.md", "tiny-f32.gguf"]
    text = (target / "Modelfile").read_text()
    (source,) = re.findall(r'^TEMPLATE """(.*?)"""$', text, re.DOTALL | re.MULTILINE)
    tokenizer = AutoTokenizer.from_pretrained(folder.adapter)
    expected = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert GoTemplate(source).run(ollama_values(CHAT)) == expected
    for line in (
        "FROM ./tiny-f32.gguf",
        'PARAMETER stop "<|im_end|>"',
        f"PARAMETER num_ctx {model.config.max_position_embeddings}",
        "PARAMETER temperature 0.6",
        "PARAMETER top_k 20",
        "PARAMETER repeat_penalty 1.1",
    ):
        assert f"\n{line}\n" in f"\n{text}"
    again = AutoModelForCausalLM.from_pretrained(target, gguf_file="tiny-f32.gguf", config=model.config)
    ids = torch.tensor([[5, 17, 3, 40]])
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, model.eval()(ids).logits, atol=1e-4)


def test_what_ollama_cannot_be_told_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished_run(tmp_path, trained="model")
    (folder.model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    )
    assert main(["export", str(folder.path), "--to", "ollama"]) == 2
    assert "no template in Ollama's language is known" in capsys.readouterr().err
    assert not (folder.path / "ollama").exists()
    assert main(["export", str(folder.path), "--to", "ollama", "--type", "q9"]) == 2
    assert "'q9' is no type that can be written" in capsys.readouterr().err
