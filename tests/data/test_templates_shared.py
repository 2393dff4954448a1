"""Templates of real models: 200 random conversations each, and the mistakes that others make with them.

The templates lie outside of the repository; where they are not, only those of the tests' own are tried.
"""

import random
from collections import Counter
from typing import Any

import pytest

from chat_samples import SHARED, THINKING, all_templates, byte_level, tokenizer_for
from chat_speaker import (
    EXPECTED_REASONS,
    Speaker,
    check_law,
    encode_or_refuse,
    learned_characters,
    places,
)
from luthier.data.chat import ChatTemplate
from luthier.data.conversation import conversation_from
from luthier.errors import RowRefused

SOURCES = {name: source for name, source in all_templates().items() if (SHARED / f"{name}.jinja").exists()}
NUM_RANDOM = 200
# Their generation prompt opens a block of reasoning that is not in front of answers without reasoning.
ASKS_TO_THINK = ("deepseekv3", "nemotron_3_super", "qwen3_5_think")
needs_templates = pytest.mark.skipif(not SOURCES, reason="the folder of shared templates is not here")


@needs_templates
@pytest.mark.parametrize("name", SOURCES)
def test_two_hundred_conversations_have_right_masks_and_ids_or_a_reason(name: str) -> None:
    tokenizer = tokenizer_for(name)
    template = ChatTemplate(tokenizer, SOURCES[name])
    refused: Counter[str] = Counter()
    asked = 0
    for seed in range(NUM_RANDOM):
        sample = Speaker(seed).sample(plain=seed % 2 == 0, parallel=True)
        conversation, encoded = encode_or_refuse(template, sample)
        if isinstance(encoded, RowRefused):
            refused[next((known for known in EXPECTED_REASONS if known in str(encoded)), str(encoded))] += 1
            assert seed % 2, f"a plain conversation is refused: {encoded}"
            continue
        check_law(template, conversation, sample, encoded, name)
        messages = template.template_messages(conversation)
        options: dict[str, Any] = {"tools": conversation.tools, "chat_template": SOURCES[name]}
        if seed < NUM_RANDOM // 2:
            assert encoded.ids.tolist() == tokenizer.apply_chat_template(
                messages, return_dict=False, **options
            )
        if seed % 2 == 0 and name not in ASKS_TO_THINK:
            prompt = template.prompt_ids(sample.messages[:-1])
            assert len(prompt) < len(encoded.ids) and encoded.ids[: len(prompt)].tolist() == prompt
            asked += 1
    assert set(refused) <= set(EXPECTED_REASONS), "every refusal is of a known kind"
    assert refused.total() < NUM_RANDOM // 2 + 1 and (asked == NUM_RANDOM // 2 or name in ASKS_TO_THINK)


def reasoning_in_every_turn(seed: int) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Many turns with reasoning in each: what sets masks sliding that compare renderings of beginnings."""
    speaker = Speaker(seed)
    messages: list[dict[str, Any]] = []
    said: dict[str, list[str]] = {"user": [], "assistant": []}
    for number in range(2 * random.Random(seed).randint(2, 5)):
        role = ("user", "assistant")[number % 2]
        words = speaker.words(3)
        said[role] += words
        messages.append({"role": role, "content": " ".join(words)})
        if role == "assistant":
            messages[-1]["reasoning_content"] = " ".join(speaker.words(4))
    return messages, said


@pytest.mark.parametrize(
    "name", [name for name in (*SOURCES, "thinking") if "3" in name or name == "thinking"]
)
def test_no_question_is_learned_where_old_reasoning_is_stripped(name: str) -> None:
    source = all_templates().get(name, THINKING)
    template = ChatTemplate(byte_level() if name == "thinking" else tokenizer_for(name), source)
    tried = 0
    for seed in range(20):
        messages, said = reasoning_in_every_turn(seed)
        try:
            encoded = template.encode(conversation_from(messages))
        except RowRefused as refusal:
            assert "no place for the reasoning" in str(refusal)
            continue
        tried += 1
        learned = learned_characters(template, encoded)
        for role, wanted in (("user", False), ("assistant", True)):
            for word in said[role]:
                (start,) = places(encoded.text, word)
                assert set(learned[start : start + len(word)]) == {wanted}, f"{role}: {word}"
        last = messages[-1]["reasoning_content"].split()
        assert all(learned[places(encoded.text, word)[0]] for word in last), "its own reasoning is learned"
    assert tried in (0, 20)


@needs_templates
def test_an_empty_block_of_reasoning_is_no_target_for_plain_answers() -> None:
    """Answers of plain data must not teach a thinking model to think nothing."""
    template = ChatTemplate(tokenizer_for("qwen3"), SOURCES["qwen3"])
    for args in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        row = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
        encoded = template.encode(conversation_from(row, None, args))
        assert "<think>\n\n</think>\n\n4" in encoded.text
        assert [text for text, learned in template.pieces(encoded) if learned] == ["4<|im_end|>"]
