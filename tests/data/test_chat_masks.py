"""The mask law: no prompt token is a target, no assistant token is lost, or the row is refused with its reason.

The oracle knows nothing of templates: every word of a conversation is unique, so it is enough to look for the
words in the text and at the tokens that cover them.
"""

from collections import Counter
from typing import Any

import pytest

from chat_samples import all_templates, byte_level, tokenizer_for
from chat_speaker import EXPECTED_REASONS, Speaker, check_law, encode_or_refuse
from luthier.data.chat import ChatTemplate, Encoded
from luthier.data.conversation import conversation_from
from luthier.errors import RowRefused

TEMPLATES = all_templates()
NUM_RANDOM = 30
ASKS_TO_THINK = (
    "deepseekv3",
    "nemotron_3_super",
    "qwen3_5_think",
)  # in the prompt, but not before plain answers


@pytest.mark.parametrize("name", TEMPLATES)
def test_law_holds_for_plain_conversations_and_none_is_refused(name: str) -> None:
    template = ChatTemplate(tokenizer_for(name), TEMPLATES[name])
    for seed in range(NUM_RANDOM):
        sample = Speaker(seed).sample(plain=True)
        conversation, encoded = encode_or_refuse(template, sample)
        assert isinstance(encoded, Encoded), encoded
        check_law(template, conversation, sample, encoded, name)


@pytest.mark.parametrize("name", TEMPLATES)
def test_law_holds_for_every_conversation_or_it_is_refused_with_a_reason(
    name: str, record_property: Any
) -> None:
    template = ChatTemplate(tokenizer_for(name), TEMPLATES[name])
    reasons: Counter[str] = Counter()
    for seed in range(2 * NUM_RANDOM):
        sample = Speaker(1000 + seed).sample(plain=False)
        conversation, encoded = encode_or_refuse(template, sample)
        if isinstance(encoded, RowRefused):
            reasons[next(known for known in EXPECTED_REASONS if known in str(encoded))] += 1
            continue
        check_law(template, conversation, sample, encoded, name)
    record_property("refused", dict(reasons))
    print(f"{name}: refused {reasons.total()} of {2 * NUM_RANDOM}: {dict(reasons.most_common())}")
    # DeepSeek's template forgets the header of a second tool call; nobody else's answers may be uncertain.
    assert reasons["is not certain"] == 0 or name == "deepseekv3"
    assert reasons["is partly"] <= 0.2 * NUM_RANDOM or name == "thinking"
    assert reasons.total() < 2 * NUM_RANDOM


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_apply_chat_template(name: str) -> None:
    tokenizer = tokenizer_for(name)
    template = ChatTemplate(tokenizer, TEMPLATES[name])
    compared = 0
    for seed in range(NUM_RANDOM):
        sample = Speaker(5000 + seed).sample(plain=seed % 2 == 0)
        conversation, encoded = encode_or_refuse(template, sample)
        if isinstance(encoded, RowRefused):
            continue
        compared += 1
        messages = template.template_messages(conversation)
        options: dict[str, Any] = {"tools": conversation.tools, "chat_template": TEMPLATES[name]}
        assert encoded.text == tokenizer.apply_chat_template(messages, tokenize=False, **options)
        assert encoded.ids.tolist() == tokenizer.apply_chat_template(messages, return_dict=False, **options)
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, **options
        )
        assert template.prompt_ids(conversation.messages, conversation.tools) == prompt
    assert compared >= NUM_RANDOM // 2


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_before_an_answer_is_the_prefix_it_was_trained_after(name: str) -> None:
    template = ChatTemplate(tokenizer_for(name), TEMPLATES[name])
    for seed in range(NUM_RANDOM // 3):
        sample = Speaker(seed).sample(plain=True)
        encoded = template.encode(conversation_from(sample.messages))
        prompt = template.prompt_ids_of(encoded)
        assert encoded.ids[: len(prompt)].tolist() == prompt
        assert encoded.targets[len(prompt)] and not encoded.targets[: len(prompt)][-1:].any()
        asked = template.prompt_text(sample.messages[:-1])
        shared = template.render(conversation_from(sample.messages)).text
        if name in ASKS_TO_THINK:
            continue
        assert shared.startswith(asked)
        ids = template.prompt_ids(sample.messages[:-1])
        assert ids == prompt[: len(ids)]


def test_trimmed_offsets_change_nothing() -> None:
    hidden, shown = (ChatTemplate(byte_level(trim=trim), TEMPLATES["chatml"]) for trim in (True, False))
    for seed in range(NUM_RANDOM):
        conversation = conversation_from(Speaker(seed).sample(plain=True).messages)
        assert hidden.encode(conversation).targets.tolist() == shown.encode(conversation).targets.tolist()
