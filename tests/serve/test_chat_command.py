"""The command `luthier chat`, from a folder with a tiny model to answers on standard output."""

import io
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from luthier.cli.main import main
from tiny_models import tiny_llama

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer of single bytes and a chat template."""
    path = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", additional_special_tokens=["<|start|>"]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
    tiny_llama(vocab_size=len(fast), eos_token_id=fast.eos_token_id).save_pretrained(path)
    return path


def chat(folder: Path, *options: str) -> int:
    return main(["chat", str(folder), "--max-new-tokens", "8", "--seed", "3", "--offline", *options])


def test_questions_come_in_through_a_pipe(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert chat(folder) == 0
    piped = capsys.readouterr()
    assert piped.out.strip() and "> " not in piped.out and "error" not in piped.err
    assert chat(folder, "--once", "one") == 0
    assert piped.out.startswith(capsys.readouterr().out)  # the same seed, so the same first answer


def test_once_answers_one_question(folder, capsys) -> None:
    for option in (("--temperature", "0"), ("--top-p", "0.5"), ("--top-k", "1"), ("--system", "be kind")):
        assert chat(folder, "--once", "hello", *option) == 0
    assert capsys.readouterr().out.count("\n") >= 4


def test_wrong_options_are_told_before_anything_is_loaded(capsys) -> None:
    assert main(["chat", "no/such/folder", "--top-p", "3", "--temperature", "-1"]) == 2
    told = capsys.readouterr().err
    assert "top_p is 3.0" in told and "temperature is -1.0" in told and "no/such" not in told


def test_a_model_without_a_template_cannot_be_talked_to(folder, tmp_path, capsys) -> None:
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert chat(tmp_path, "--once", "hello") == 2
    assert "has no chat template, so it cannot be talked to" in capsys.readouterr().err
