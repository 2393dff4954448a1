"""The same conversation has the same ids in transformers, in the prompt that is served, and by a GGUF in llama.cpp."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest

gguf = pytest.importorskip("gguf")

from chat_samples import all_templates  # noqa: E402
from chat_speaker import Speaker  # noqa: E402
from gguf_models import byte_merging, saved  # noqa: E402
from luthier.data.calls import checked_tools  # noqa: E402
from luthier.data.chat import ChatTemplate  # noqa: E402
from luthier.data.conversation import Conversation, checked_messages  # noqa: E402
from luthier.errors import RowRefused  # noqa: E402
from luthier.export.gguf.llama import installed  # noqa: E402
from luthier.export.gguf.write import write_gguf  # noqa: E402
from luthier.export.verify.engines.llama_cpp import InLlamaCpp  # noqa: E402
from luthier.export.verify.file_words import FileWords  # noqa: E402
from luthier.serve.prompts import conversation_ids  # noqa: E402

ASKED = 200
TEMPLATES = ("chatml", "qwen2_5", "qwen3_instruct_2507", "llama3_1")
SPECIAL = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>")


def tokenizer_with(name: str) -> Any:
    """Merges bytes, and knows the control tokens of these templates."""
    if name not in all_templates():
        pytest.skip("the folder of shared templates is not here")
    tokenizer = byte_merging()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *SPECIAL]})
    tokenizer.bos_token = "<|begin_of_text|>"  # llama.cpp takes a comma where a file names none
    tokenizer.chat_template = all_templates()[name]
    return tokenizer


def conversations(template: ChatTemplate) -> Any:
    """Messages up to where an answer begins, with their tools; those that the template has no place for left out."""
    for seed in count():
        sample = Speaker(seed).sample(plain=seed % 2 == 0)
        messages = sample.messages
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        try:
            yield messages, sample.tools, conversation_ids(template, messages, sample.tools)
        except RowRefused:
            assert seed % 2, "a plain conversation is refused"


@pytest.fixture(params=TEMPLATES)
def written(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Path]:
    """A tokenizer, and a GGUF of a model that has it."""
    tokenizer = tokenizer_with(request.param)
    monkeypatch.setattr("luthier.export.gguf.write._tokenizer", lambda folder: tokenizer)
    saved("qwen2", tmp_path / "model", vocab_size=len(tokenizer), num_hidden_layers=1)
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    return tokenizer, tmp_path / "model.gguf"


@pytest.mark.parametrize(
    "where",
    [
        "the file",
        pytest.param(
            "llama.cpp", marks=pytest.mark.skipif(not installed(), reason="llama-cpp-python is not here")
        ),
    ],
)
def test_ids_of_two_hundred_conversations_are_the_same(where: str, written: tuple[Any, Path]) -> None:
    tokenizer, file = written
    template = ChatTemplate(tokenizer)
    words = FileWords(gguf.GGUFReader(file))
    engine = InLlamaCpp(file, 16) if where == "llama.cpp" else None
    assert not words.fault
    with_tools = 0
    for number, (messages, tools, served) in enumerate(conversations(template)):
        if number == ASKED:
            break
        shown = template.template_messages(
            Conversation(checked_messages(messages)[0], checked_tools(tools), {})
        )
        options: dict[str, Any] = {"tools": tools, "add_generation_prompt": True}
        assert served == tokenizer.apply_chat_template(shown, return_dict=False, **options)
        text = tokenizer.apply_chat_template(shown, tokenize=False, **options)
        if engine is None:
            assert words.ids(text) == served
        else:
            assert engine.render(shown, tools) == text and engine.ids(text) == served
        with_tools += tools is not None
    assert with_tools or "tools" not in tokenizer.chat_template
