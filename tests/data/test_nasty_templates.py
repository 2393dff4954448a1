"""Templates nobody has seen: masks are right by construction, or rows are refused with the reason."""

from collections import Counter
from typing import Any

import pytest

from chat_samples import CHATML, byte_level, sentence_piece
from chat_speaker import EXPECTED_REASONS, Speaker, check_law, encode_or_refuse
from luthier.data.chat import ChatTemplate
from luthier.data.conversation import conversation_from
from luthier.errors import DataError, RowRefused
from nasty_templates import COUNTS_BACK, NASTY, ONE_TEXT

REASONS = (
    *EXPECTED_REASONS,
    "outside of its turn",
    "into the turn of",
    "does not render message",
    "renders message",
)


def tokenizer_of(name: str) -> Any:
    return sentence_piece() if name == "tools_at_the_last_question" else byte_level("<|im_end|>")


@pytest.mark.parametrize("name", NASTY)
def test_masks_are_right_or_the_row_is_refused(name: str) -> None:
    tokenizer = tokenizer_of(name)
    template = ChatTemplate(tokenizer, NASTY[name])
    refused: Counter[str] = Counter()
    for seed in range(80):
        sample = Speaker(seed).sample(plain=seed % 2 == 0, parallel=True)
        conversation, encoded = encode_or_refuse(template, sample)
        if isinstance(encoded, RowRefused):
            assert seed % 2, f"a plain conversation is refused: {encoded}"
            refused[next((known for known in REASONS if known in str(encoded)), str(encoded))] += 1
            continue
        check_law(template, conversation, sample, encoded, name)
        options: dict[str, Any] = {"tools": conversation.tools, "chat_template": NASTY[name]}
        messages = template.template_messages(conversation)
        assert encoded.ids.tolist() == tokenizer.apply_chat_template(messages, return_dict=False, **options)
    assert set(refused) <= set(REASONS), "every refusal is of a known kind"


@pytest.mark.parametrize("source", [ONE_TEXT, COUNTS_BACK])
def test_a_template_that_hides_whose_text_is_whose_is_refused(source: str) -> None:
    template = ChatTemplate(byte_level(), source)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match="the assistant's part of the text cannot be found"):
        template.encode(conversation_from(messages))


TOOLS = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
ROW = conversation_from(
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"type": "function", "function": {"name": "look", "parameters": {}}}],
)


@pytest.mark.parametrize("as_list", [False, True])
def test_several_templates_by_name(as_list: bool) -> None:
    """As Hermes and Command R+ have them: one for rows with tools, one for the others."""
    named: Any = {"default": CHATML, "tool_use": TOOLS + CHATML, "rag": "{{ documents }}"}
    if as_list:
        named = [{"name": name, "template": source} for name, source in named.items()]
    tokenizer = byte_level("</s>")
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = named
        template = ChatTemplate(tokenizer)
        assert '"look"' in template.render(ROW).text
        assert template.render(conversation_from(ROW.messages)).text.startswith("<|im_start|>user")
        tokenizer.chat_template = {"one": CHATML, "two": CHATML}
        with pytest.raises(DataError, match=r"several chat templates \(one, two\) and none is the default"):
            ChatTemplate(tokenizer)
    finally:
        tokenizer.chat_template = before
