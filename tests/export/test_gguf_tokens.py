"""What a GGUF says about a tokenizer: the same tokens, and the name of the rule that splits text."""

import json
from pathlib import Path
from typing import Any

import pytest

gguf = pytest.importorskip("gguf")

from chat_samples import CHATML, sentence_piece  # noqa: E402
from gguf_models import byte_merging, saved, swallowing  # noqa: E402
from luthier.errors import ModelError  # noqa: E402
from luthier.export.gguf.tokens import vocabulary  # noqa: E402
from luthier.export.gguf.write import write_gguf  # noqa: E402
from luthier.models.splitting import IGNORING_MERGES, RULES, name_of  # noqa: E402

NAMES = sorted({*RULES.values(), *IGNORING_MERGES.values()})


def told(tokenizer: Any) -> dict[str, Any]:
    return json.loads(tokenizer.backend_tokenizer.to_str())


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_is_recognised(name: str) -> None:
    assert name_of(told(byte_merging(name))) == name


def test_an_unknown_rule_is_refused_and_shown() -> None:
    found = told(byte_merging())
    found["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+"
    with pytest.raises(ModelError, match=r"no known name in llama\.cpp.*: \\p\{L\}\+ then bytes"):
        name_of(found)
    found = told(byte_merging())
    found["normalizer"] = {"type": "Lowercase"}
    with pytest.raises(ModelError, match="after Lowercase"):
        name_of(found)


def test_tokens_types_and_ends() -> None:
    tokenizer = byte_merging()
    size, end = len(tokenizer), tokenizer.convert_tokens_to_ids("<|im_start|>")
    found = vocabulary(tokenizer, size + 2, [tokenizer.eos_token_id, end])
    kinds = gguf.TokenType
    for text, number in tokenizer.get_vocab().items():
        assert found.tokens[number] == text
        expected = {"<|im_start|>": kinds.CONTROL, "<|im_end|>": kinds.CONTROL, "<think>": kinds.USER_DEFINED}
        assert found.types[number] == expected.get(text, kinds.NORMAL)
    assert found.types[size:] == [kinds.UNUSED] * 2 and len({*found.tokens}) == size + 2
    assert found.special == {"eos": tokenizer.eos_token_id, "eot": end}
    assert found.adds == {"bos_token": False, "eos_token": False}
    assert found.templates == CHATML


def test_fewer_rows_than_tokens_are_refused() -> None:
    tokenizer = byte_merging()
    with pytest.raises(ModelError, match=f"rows for {len(tokenizer) - 1} tokens only"):
        vocabulary(tokenizer, len(tokenizer) - 1, [])


def test_scores_of_sentence_piece_join_in_the_order_of_its_merges() -> None:
    """Joining by score, as llama.cpp does, gives the tokenizer's own tokens."""
    tokenizer = sentence_piece()
    found = vocabulary(tokenizer, len(tokenizer), [])
    assert found.model == "llama" and found.adds["space_prefix"] and found.scores is not None
    ids = {text: number for number, text in enumerate(found.tokens)}
    for text in (
        "The quick brown fox jumps",
        "word words wordless",
        "some text with spaces and the user",
        "a",
    ):
        parts = list("▁" + text.replace(" ", "▁"))
        while True:
            pairs = [(i, ids.get(parts[i] + parts[i + 1])) for i in range(len(parts) - 1)]
            known = [(-found.scores[number], i) for i, number in pairs if number is not None]
            if not known:
                break
            _, i = min(known)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        assert [ids[part] for part in parts] == tokenizer(text, add_special_tokens=False).input_ids
    byte = found.tokens.index("<0x41>")
    assert found.types[byte] == gguf.TokenType.BYTE


def test_special_tokens_that_swallow_white_space_are_told_by_the_models_name() -> None:
    """llama.cpp looks for phi-3 in the name, and crashes where such a name has another vocabulary."""
    tokenizer = swallowing()
    found = vocabulary(tokenizer, len(tokenizer), [])
    assert found.name_for("tickets") == "tickets (phi-3)" and found.name_for("My-Phi-3") == "My-Phi-3"
    plain = vocabulary(byte_merging(), 600, [])
    assert plain.name_for("tickets") == "tickets" and plain.name_for("Phi3-like") == "phi 3-like"
    other = swallowing(keep="<|user|>")
    with pytest.raises(ModelError, match=r"swallow white space beside them: <\|assistant\|>, <\|end\|>\."):
        vocabulary(other, len(other), [])


def test_the_file_holds_them(tmp_path: Path) -> None:
    saved("qwen3", tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "q8_0", name="tickets")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    tokenizer = byte_merging()

    def value(key: str) -> Any:
        return fields[key].contents()

    assert value("general.name") == "tickets" and value("tokenizer.ggml.model") == "gpt2"
    assert value("tokenizer.ggml.pre") == "qwen2" and value("tokenizer.chat_template") == CHATML
    assert value("tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    assert len(value("tokenizer.ggml.tokens")) == len(tokenizer) + 3
    merges = told(tokenizer)["model"]["merges"]
    assert value("tokenizer.ggml.merges") == [" ".join(pair) for pair in merges]
