# ruff: noqa: E501 - templates are written as models have them
"""What the chat template refuses and why, and the decisions about headers and ends of turns one by one."""

from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from chat_samples import (
    CHATML,
    GENERATION_TAGS,
    LLAMA2,
    MISTRAL,
    THINKING,
    UNENDED,
    byte_level,
    sentence_piece,
)
from luthier.data.chat import ChatTemplate
from luthier.data.conversation import Conversation, conversation_from
from luthier.data.form import content_sentinel
from luthier.data.probe import ask
from luthier.errors import DataError, RowRefused


def chat(*texts: str, **last: Any) -> Conversation:
    roles = ("user", "assistant") * len(texts)
    messages: list[dict[str, Any]] = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    messages[-1].update(last)
    return conversation_from(messages)


def learned(template: ChatTemplate, conversation: Conversation) -> list[str]:
    encoded = template.encode(conversation)
    return [text for text, is_learned in template.pieces(encoded) if is_learned]


def refusal(template: ChatTemplate, conversation: Conversation) -> str:
    with pytest.raises(RowRefused) as caught:
        template.encode(conversation)
    return str(caught.value)


def test_answers_and_their_ends_are_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate(tokenizer)
    assert learned(template, chat("a", "b c", "d", "e")) == ["b c<|im_end|>", "e<|im_end|>"]
    assert learned(template, chat("a", "")) == ["<|im_end|>"]
    assert template.generation_prompt == "<|im_start|>assistant\n"


def test_pieces_are_the_whole_text_and_its_targets(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate(tokenizer)
    encoded = template.encode(chat("naïve 😀", "日本語 é", "x", "y"))
    pieces = template.pieces(encoded)
    assert "".join(text for text, _ in pieces) == encoded.text
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in pieces]
    targets = [is_learned for (_, is_learned), part in zip(pieces, ids, strict=True) for _ in part]
    assert targets == encoded.targets.tolist()
    assert encoded.ids.dtype == np.int32 and encoded.targets.dtype == np.bool_


def test_a_block_of_reasoning_that_the_template_writes_is_prompt_and_the_rows_own_is_learned() -> None:
    template = ChatTemplate(byte_level(), THINKING)
    assert template.render(chat("q", "a")).text.endswith("assistant\n<think>\n\n</think>\n\na<|im_end|>\n")
    assert learned(template, chat("q", "a")) == ["a<|im_end|>"]
    own = ["<think>\nbecause\n</think>\n\na<|im_end|>"]
    assert learned(template, chat("q", "a", reasoning_content="because")) == own
    assert learned(template, chat("q", "<think>because</think>a")) == own
    history = chat("q", "<think>because</think>a", "r", "<think>since</think>b")
    assert learned(template, history) == ["a<|im_end|>", "<think>\nsince\n</think>\n\nb<|im_end|>"]


def test_prompt_of_a_row_ends_with_the_block_that_the_template_wrote() -> None:
    tokenizer = byte_level()
    template = ChatTemplate(tokenizer, THINKING)
    prompt = str(tokenizer.decode(template.prompt_ids_of(template.encode(chat("q", "a", "r", "b")))))
    assert prompt.endswith(
        "a<|im_end|>\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    asked = tokenizer.decode(template.prompt_ids([{"role": "user", "content": "q"}]))
    assert asked == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


def test_white_space_that_the_generation_prompt_lacks_is_the_models_to_write() -> None:
    template = ChatTemplate(sentence_piece(), LLAMA2)
    assert template.generation_prompt == ""
    assert learned(template, chat("hello there", "word words")) == [" word words </s>"]


def test_tool_calls_are_learned_and_results_are_not() -> None:
    template = ChatTemplate(sentence_piece(), MISTRAL)
    call = {"function": {"name": "look", "arguments": '{"place": "here"}'}}
    messages = [
        {"role": "user", "content": "where"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "there"},
        {"role": "assistant", "content": "over there"},
    ]
    encoded = template.encode(conversation_from(messages))
    assert [text for text, is_learned in template.pieces(encoded) if is_learned] == [
        '[TOOL_CALLS][{"name": "look", "arguments": {"place": "here"}}]</s>',
        "over there</s>",
    ]


def test_messages_marked_as_context_are_not_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate(tokenizer)
    for mark in ({"train": False}, {"weight": 0}):
        messages = [{"role": "assistant", "content": "one", **mark}, {"role": "assistant", "content": "two"}]
        assert learned(template, conversation_from(messages)) == ["two<|im_end|>"]


def test_templates_without_an_end_of_turn_say_so(tokenizer: PreTrainedTokenizerFast) -> None:
    assert ChatTemplate(tokenizer).closes_turns
    assert ChatTemplate(tokenizer, GENERATION_TAGS).closes_turns
    unended = ChatTemplate(tokenizer, UNENDED)
    assert not unended.closes_turns
    assert learned(unended, chat("q", "a", "r", "b")) == ["a", "b"]


def test_template_with_tools_is_used_for_rows_with_tools() -> None:
    tokenizer = byte_level()
    with_tools = "TOOLS {{ tools | tojson }}\n" + CHATML
    tokenizer.chat_template = {"default": CHATML, "tool_use": with_tools}
    template = ChatTemplate(tokenizer)
    tools = [{"type": "function", "function": {"name": "look"}}]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert template.encode(conversation_from(messages, tools)).text.startswith("TOOLS [")
    assert template.encode(conversation_from(messages)).text.startswith("<|im_start|>user")


def test_variables_of_the_run_and_of_the_row_reach_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    source = "{{ greeting }}\n" + CHATML
    template = ChatTemplate(tokenizer, source, {"greeting": "hello"})
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert template.render(conversation_from(messages)).text.startswith("hello\n")
    own = conversation_from(messages, None, {"greeting": "hi"})
    assert template.render(own).text.startswith("hi\n")


def test_tokenizer_without_a_template() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"has no chat template.*instruct model.*data.template"):
        ChatTemplate(tokenizer)
    tokenizer.chat_template = {"rag": CHATML}
    with pytest.raises(DataError, match=r"several chat templates \(rag\) and none is the default"):
        ChatTemplate(tokenizer)


def test_template_that_is_not_jinja(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"not valid Jinja: .*line 2.*data.template"):
        ChatTemplate(tokenizer, "ok\n{% for %}")


def test_tokenizer_without_offsets() -> None:
    class Slow:
        chat_template = CHATML

    with pytest.raises(DataError, match=r"Slow is not a fast one.*tokenizer.json"):
        ChatTemplate(Slow())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "{{ messages[1].content ~ messages[3].content }}",
            "does not write its messages in a loop",
        ),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out the assistant's text"),
        ("{{ raise_exception('never') }}", "refuses the conversation: never"),
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}<|end|>{{ (loop.nextitem or m).content }}<|end|>{% endif %}{% endfor %}",
            "writes other messages into the assistant's turn",
        ),
        (
            "{% set ns = namespace(all=[]) %}{% for m in messages %}{% set ns.all = ns.all + [{'role': m.role, 'content': m.content}] %}"
            "{% endfor %}{% for m in ns.all %}{{ m.role + m.content }}{% endfor %}",
            "does not write its messages in a loop",
        ),
    ],
)
def test_template_that_cannot_be_used_stops_the_run(
    tokenizer: PreTrainedTokenizerFast, source: str, reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        ChatTemplate(tokenizer, source).encode(chat("q", "a"))
    assert not isinstance(caught.value, RowRefused)


def test_template_that_cannot_be_trained_with_can_still_write_a_prompt(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = ChatTemplate(tokenizer, "{{ messages[0].content }}:")
    assert template.prompt_text([{"role": "user", "content": "q"}]) == "q:"


@pytest.mark.parametrize(
    ("source", "conversation", "reason"),
    [
        (CHATML, chat("a<|im_end|>", "b"), r"message 1 \(user\) contains '<\|im_end\|>', which the tokenizer reads as"),
        (CHATML, chat("a", "b<|im_start|>user"), r"message 2 \(assistant\) contains '<\|im_start\|>'"),
        (CHATML, chat("a", "b", name="<s>"), r"message 2 \(assistant\) contains '<s>'"),
        (CHATML, chat("a\U000f0010", "b"), r"contains '\\U000f0010', which cannot be used in a text here"),
        (CHATML, chat("a\ud800", "b"), r"contains '\\ud800', which cannot be used in a text here"),
        (CHATML, chat("a", f"b {content_sentinel(3)}"), f"contains '{content_sentinel(3)}'"),
        (CHATML, chat("a", "\nb"), r"the token '\\n\\n' is partly prompt \('\\n'\) and partly an answer \('\\n'\)"),
        (CHATML, chat("a", "b", reasoning_content="c"), r"no place for the reasoning of message 2 \(assistant\)"),
        (
            CHATML,
            chat("a", "b", tool_calls=[{"name": "f", "arguments": {}}]),
            r"no place for the tool calls of message 2 \(assistant\)",
        ),
        (
            "{% if messages[0].content == 'no' %}{{ raise_exception('I will not') }}{% endif %}" + CHATML,
            chat("no", "b"),
            "the chat template refuses the conversation: I will not",
        ),
        (
            CHATML.replace("{{ '<|im_start|>'", "{% if message.content != 'skip' %}{{ '<|im_start|>'", 1).replace(
                "{% endfor", "{% endif %}{% endfor", 1
            ),
            chat("a", "skip", "b", "c"),
            r"the template does not render message 2 \(assistant\)",
        ),
        (
            "{% for message in messages if message.role != 'tool' %}" + CHATML.removeprefix("{% for message in messages %}"),
            conversation_from(
                [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "tool", "content": "unseen"},
                    {"role": "assistant", "content": "c"},
                ]
            ),
            r"the template does not render message 3 \(tool\)",
        ),
        (
            CHATML + "{% for m in messages %}{% if m.content == 'again' %}{{ m.content }}{% endif %}{% endfor %}",
            chat("a", "again"),
            r"the template renders message 2 \(assistant\) in 2 places",
        ),
        (
            CHATML.replace("message.content +", "(message.content if message.content != 'x' else 'y') +", 1)
            .replace("'<|im_start|>' + message.role", "('<|im_start|>' if message.content != 'x' else '') + message.role"),
            chat("a", "x"),
            r"where the answer of message 2 \(assistant\) begins is not certain",
        ),
        (
            CHATML.replace("'<|im_end|>\n'", "('<|im_end|>\n' if message.content != 'word word' else '<|end|>\n')", 1),
            chat("a", "word word"),
            r"where the answer of message 2 \(assistant\) ends is not certain",
        ),
        (
            "{% set body %}{% for m in messages %}{{ m.role + ':' + m.content + '<|end|>' }}{% endfor %}{% endset %}{{ body | reverse if messages[0].content == 'x' else body }}",
            chat("x", "b"),
            "the template (moves|cuts) the text of messages",
        ),
        (
            "{% set body %}{% for m in messages %}{{ m.role + ':' + m.content + '<|end|>' }}{% endfor %}{% endset %}{{ body }}{% if messages[0].content == 'x' %}{{ body | length }}{% endif %}",
            chat("x", "b"),
            "changes its output with the text around a message",
        ),
    ],
)  # fmt: skip
def test_refused_rows_say_why(
    tokenizer: PreTrainedTokenizerFast, source: str, conversation: Conversation, reason: str
) -> None:
    import re

    assert re.search(reason, refusal(ChatTemplate(tokenizer, source), conversation))


def test_tools_that_the_template_does_not_show(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    conversation = conversation_from(messages, [{"type": "function", "function": {"name": "look"}}])
    assert "does not show the tool 'look'" in refusal(ChatTemplate(tokenizer), conversation)


def test_answer_without_anything_to_learn() -> None:
    assert "all targets masked" in refusal(ChatTemplate(byte_level(), UNENDED), chat("q", ""))


def test_reasoning_tags_are_allowed_in_text(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate(tokenizer)
    assert learned(template, chat("a", "<think>b</think>c")) == ["<think>b</think>c<|im_end|>"]


def test_tokenizer_handed_in_is_not_changed() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    before = tokenizer.backend_tokenizer.to_str()
    ChatTemplate(tokenizer).encode(chat("a", "b"))
    assert tokenizer.backend_tokenizer.to_str() == before


def test_settings_of_the_tokenizer_for_padding_and_cutting_do_not_reach_the_rows() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    try:
        assert 10 < len(ChatTemplate(tokenizer).encode(chat("hello there", "b")).ids) < 50
    finally:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


def test_what_is_remembered_of_variables_of_rows_has_a_bound(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def counting(program: Any, variables: dict[str, Any]) -> Any:
        asked.append(variables.get("one"))
        return ask(program, variables)

    monkeypatch.setattr("luthier.data.chat.ask", counting)
    monkeypatch.setattr("luthier.data.chat.MOST_LITERALS", 2)
    template = ChatTemplate(tokenizer)
    for one in (1, 2, 1, 3, 1, 2):
        template.prompt_text([{"role": "user", "content": "a"}], template_args={"one": one})
    assert asked == [1, 2, 3, 2], "the one that was not needed for longest is forgotten"
