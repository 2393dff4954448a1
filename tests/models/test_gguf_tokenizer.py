"""A tokenizer that is read from a GGUF splits text by the rule that the file names, as the model learned it."""

import random
from pathlib import Path

import pytest

pytest.importorskip("gguf")

from gguf_models import byte_merging, saved
from luthier.export.gguf.write import write_gguf
from luthier.models.gguf import convert_gguf, gguf_tokenizer
from luthier.models.load import gguf_file, load_tokenizer
from luthier.models.splitting import IGNORING_MERGES, RULES

PARTS = (
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "1",
    "2026",
    "It's",
    "I'M",
    "they'll",
    "word",
    "Ünï",
    "?!",
    "/",
    "你好",
)


def texts(number: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(PARTS, k=draw.randrange(1, 12))) for _ in range(number)]


@pytest.mark.parametrize("name", sorted({*RULES.values(), *IGNORING_MERGES.values()}))
def test_the_rule_of_the_file_is_kept(name: str, tmp_path: Path) -> None:
    tokenizer = byte_merging(name)
    saved("llama", tmp_path / "model", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    found = gguf_tokenizer(tmp_path / "model.gguf")
    unpacked = load_tokenizer(str(convert_gguf(tmp_path / "model.gguf")))
    for text in texts(200):
        expected = tokenizer.encode(text, add_special_tokens=False)
        assert found.encode(text, add_special_tokens=False) == expected, (text, name)
        assert unpacked.encode(text, add_special_tokens=False) == expected, (text, name)


def test_a_tokenizer_beside_the_file_is_not_read_in_its_place(tmp_path: Path) -> None:
    saved("llama", tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model" / "model.gguf", "f32")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    beside, alone = gguf_tokenizer(tmp_path / "model" / "model.gguf"), gguf_tokenizer(tmp_path / "model.gguf")
    assert beside.get_vocab() == alone.get_vocab() and beside.eos_token_id == alone.eos_token_id is not None
    assert beside.chat_template == alone.chat_template is not None


def test_the_demo_model_reads_numbered_lists_as_it_was_taught() -> None:
    """SmolLM2 takes digits out first, so what is in front of one is a token of its own: two line ends are one."""
    file = gguf_file("demo:smollm2-135m")
    assert file is not None
    tokenizer = gguf_tokenizer(file)  # not what was unpacked from it some day
    assert tokenizer.tokenize("a\n\n1. b  2") == ["a", "ĊĊ", "1", ".", "Ġb", "ĠĠ", "2"]
