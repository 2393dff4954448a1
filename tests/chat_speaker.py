# ruff: noqa: RUF001 - control tokens are written as models have them
"""Random conversations whose words are unique, and the mask law that is checked with them.

The law knows nothing of templates: it is enough to look for the words in the text and at the tokens that cover
them.
"""

import random
import re
import string
from dataclasses import dataclass, field
from typing import Any

from luthier.data.chat import ChatTemplate, Encoded
from luthier.data.conversation import Conversation, conversation_from
from luthier.data.tokens import TokenEncoder
from luthier.errors import RowRefused

ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>",
    "<|end|>", "<end_of_utterance>", "</s>",
)  # fmt: skip
HEADERS = (
    "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<|START_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<｜User｜>", "<｜Assistant｜>", "<|user|>", "<|assistant|>",
    "<|system|>", "<|observation|>", "[INST]", "[/INST]", "<s>", "<tool_response>", "the end of it",
)  # fmt: skip
UNENDED = ("glm4moe", "unended")
EXPECTED_REASONS = (
    "the template has no place for the tool calls",
    "the template has no place for the reasoning",
    "the chat template refuses the conversation: Conversation roles must alternate",
    "the chat template refuses the conversation: System role not supported",
    "the template leaves out the text",
    "the template leaves out the reasoning",
    "the template does not show the tool",
    "all targets masked",
    "the template leaves out tool call",
    "This model only supports single tool-calls at once",
    "inside message",
    "is not certain",
    "is partly",
)
EXTRA = ("", "", "", " é–“日本”", " 😀🎉", "!\n\nAnd", " \t {x}")


@dataclass
class Sample:
    """A conversation, with the words that must and must not be learned."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[Any] | None = None
    answers: list[list[str]] = field(default_factory=list)
    reasoning: dict[int, list[str]] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)


class Speaker:
    """Makes words that occur once, and conversations of them."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.used: set[str] = set()

    def words(self, least: int = 1) -> list[str]:
        result = []
        for _ in range(self.random.randint(least, 5)):
            word = "".join(self.random.choices(string.ascii_lowercase, k=9))
            assert word not in self.used
            self.used.add(word)
            result.append(word)
        return result

    def text(self, words: list[str]) -> str:
        return self.random.choice((" ", "\n", "  ")).join(words) + self.random.choice(EXTRA)

    def sample(self, *, plain: bool, parallel: bool = False) -> Sample:
        sample = Sample()
        self.thinks, self.calls = self.random.random() < 0.35, self.random.random() < 0.35
        if not plain and self.random.random() < 0.4:
            self.say(sample, "system")
        for _ in range(self.random.randint(1, 4)):
            for _ in range(1 if plain else self.random.choice((1, 1, 1, 2))):
                self.say(sample, "user", edges=not plain)
            if not plain and self.calls and self.random.random() < 0.5:
                self.call(sample, self.random.choice((1, 2, 3)) if parallel else 1)
            for _ in range(1 if plain else self.random.choice((1, 1, 1, 2))):
                self.answer(sample, plain)
        return sample

    def say(self, sample: Sample, role: str, edges: bool = False, **more: Any) -> None:
        words = self.words()
        sample.prompts += words
        text = self.text(words)
        if edges and self.random.random() < 0.2:
            text = self.random.choice((" {}", "{} ", "\n{}", "{}\n\n")).format(text)
        sample.messages.append({"role": role, "content": text, **more})

    def answer(self, sample: Sample, plain: bool) -> None:
        words = [] if not plain and self.random.random() < 0.1 else self.words()
        message: dict[str, Any] = {"role": "assistant", "content": self.text(words) if words else ""}
        kind = 1.0 if plain else self.random.uniform(0.0 if self.thinks else 0.3, 1.0)
        if kind < 0.15:
            sample.reasoning[len(sample.messages)] = self.words()
            message["reasoning_content"] = self.text(sample.reasoning[len(sample.messages)])
        elif kind < 0.3 and words:
            sample.reasoning[len(sample.messages)] = self.words()
            thought = self.text(sample.reasoning[len(sample.messages)])
            message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
        elif kind < 0.4:
            message["content"] = self.random.choice((" {}", "{} ", "\n{}", "{}\n\n")).format(
                message["content"]
            )
        sample.messages.append(message)
        sample.answers.append(words)

    def call(self, sample: Sample, num_calls: int = 1) -> None:
        said = self.words() if self.random.random() < 0.3 else []
        content = self.text(said) if said else self.random.choice((None, ""))
        calls: list[dict[str, Any]] = []
        wanted = list(said)
        for number in range(num_calls):
            name, value, city = self.words(3)[:3]
            parameters = {"type": "object", "properties": {"place": {"type": "string", "description": city}}}
            function = {"name": name, "description": city, "parameters": parameters}
            sample.tools = [*(sample.tools or []), {"type": "function", "function": function}]
            sample.prompts.append(city)
            arguments = self.random.choice(
                ({"place": value, "days": 3}, {"days": 3, "place": [value]}, {"place": value})
            )
            call = {"name": name, "arguments": arguments}
            calls.append({"id": f"abcdefgh{number}", "type": "function", "function": call})
            wanted += [name, value]
        sample.messages.append({"role": "assistant", "content": content, "tool_calls": calls})
        sample.answers.append(wanted)
        for call in calls:
            self.say(sample, "tool", tool_call_id=call["id"], name=call["function"]["name"])


def check_law(
    template: ChatTemplate, conversation: Conversation, sample: Sample, encoded: Encoded, name: str
) -> None:
    text = encoded.text
    learned = learned_characters(template, encoded)
    for word in sample.prompts:
        for start in places(text, word):
            assert not any(learned[start : start + len(word)]), f"prompt word {word} is learned: {text}"
    for header in HEADERS:
        for start in places(text, header):
            assert not any(learned[start : start + len(header)]), f"{header} is learned: {text}"
    calls = {
        call["function"]["name"] for message in sample.messages for call in message.get("tool_calls", [])
    }
    turns = [number for number, message in enumerate(sample.messages) if message["role"] == "assistant"]
    end = 0
    for number, words in zip(turns, sample.answers, strict=True):
        found = [start for word in words for start in answer_places(text, word, learned, word in calls)]
        assert len(found) == len(words), f"answer words of {sample.messages[number]} are lost: {text}"
        end = max([end, *(start + 9 for start in found)])
        merged = number + 1 < len(sample.messages) and sample.messages[number + 1]["role"] == "assistant"
        if words and name not in UNENDED and not (name == "merging" and merged):
            first = min(text.find(mark, end) for mark in ENDS if mark in text[end:])
            assert learned[first], f"the end of turn of message {number} is not learned: {text[first:]}"
    for words in sample.reasoning.values():
        for word in words:
            for start in places(text, word):
                assert all(learned[start : start + 9]), f"reasoning {word} is written but not learned: {text}"
    lost = [number for number, words in sample.reasoning.items() if not all(places(text, w) for w in words)]
    assert turns[-1] not in lost, f"the reasoning of the last answer is lost: {text}"
    assert encoded.left_out == len(lost), "every earlier answer without its reasoning is counted"


def learned_characters(template: ChatTemplate, encoded: Encoded) -> list[bool]:
    offsets = TokenEncoder(template.tokenizer).encode(encoded.text).offsets
    learned = [False] * len(encoded.text)
    for (start, end), target in zip(offsets.tolist(), encoded.targets.tolist(), strict=True):
        learned[start:end] = [target or old for old in learned[start:end]]
    return learned


def places(text: str, word: str) -> list[int]:
    return [found.start() for found in re.finditer(f"(?={re.escape(word)})", text)] if word in text else []


def answer_places(text: str, word: str, learned: list[bool], several: bool) -> list[int]:
    """Where an answer's word is learned. A tool's name stands in the list of tools too."""
    found = [start for start in places(text, word) if all(learned[start : start + len(word)])]
    assert several or len(places(text, word)) == 1
    return found


def encode_or_refuse(template: ChatTemplate, sample: Sample) -> tuple[Conversation, Encoded | RowRefused]:
    conversation = conversation_from(sample.messages, sample.tools)
    try:
        return conversation, template.encode(conversation)
    except RowRefused as refusal:
        return conversation, refusal
