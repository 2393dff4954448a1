"""What a row says, as text: the common ground on which rows are compared.

Instructions that many rows share (system and developer messages, tools) are left out of it: they would make
every row look like every other one.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from luthier.data.content import Answers, Content, Labelled, Pieces, Prompt, Related, Steps, Text, TokenIds
from luthier.data.conversation import REASONING_FIELDS, Message

_INSTRUCTIONS = ("system", "developer")
# Scripts without spaces between words: every character counts as a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Japanese, Chinese
)
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


def said(content: Content) -> str:
    """The text of a row without its instructions; empty if it has none (token ids)."""
    return "\n".join(text for voice, text in voices(content) if voice != "tokens")


def voices(content: Content) -> Iterator[tuple[str, str]]:
    """The text of a row in parts that are not the same thing: answers that are judged are told apart.

    Token ids are one part, named `tokens`, of numbers with spaces between them.
    """
    if isinstance(content, TokenIds):
        yield "tokens", " ".join(map(str, content.ids.tolist()))
    elif isinstance(content, Text | Labelled):
        yield "", content.text
    elif isinstance(content, Related):
        yield "", content.query
        for number, text in enumerate(content.texts):
            yield f"text {number}", text
    elif isinstance(content, Pieces):
        yield "", "".join(text for text, _ in content.pieces)
    elif isinstance(content, Steps):
        yield "", "\n".join([*_texts(content.context), *content.steps])
    elif isinstance(content, Answers):
        yield "", "\n".join(_texts(content.context))
        for number, answer in enumerate(content.answers):
            yield f"answer {number}", "\n".join(_texts(answer))
    else:
        yield "", "\n".join(_texts(content.messages))


def facets(content: Content) -> str:
    """What two rows must have in common, besides their text, to be near duplicates: kind and labels."""
    if isinstance(content, Answers):
        return f"answers {content.judged} {sorted(content.facts.items())}"
    if isinstance(content, Steps):
        return f"steps {content.labels}"
    if isinstance(content, Labelled):
        return f"labelled {content.label}"
    if isinstance(content, Related):
        return f"related {content.labels}"
    return type(content).__name__


def identity(content: Content) -> int:
    """A number of 64 bits that rows have in common when they say, and teach, the same.

    Everything counts: roles, tools, labels, what is learned. White space is taken as one space, and the ways
    in which Unicode can write a character as one.
    """
    values = {name: value for name, value in _values(content) if not _is_aside(content, name)}
    text = json.dumps([type(content).__name__, _plain(values)], sort_keys=True, ensure_ascii=False)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation; characters, where a script has no spaces."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _texts(messages: Iterable[Message]) -> Iterator[str]:
    for message in messages:
        if message["role"] in _INSTRUCTIONS:
            continue
        yield from (message[name] for name in REASONING_FIELDS if message.get(name))
        if message.get("content"):
            yield str(message["content"])
        for call in message.get("tool_calls") or ():
            inner = call.get("function", call)
            yield f"{inner['name']} {json.dumps(inner.get('arguments', {}), sort_keys=True, ensure_ascii=False)}"


def _is_aside(content: Content, name: str) -> bool:
    """Columns that a text only carries along say nothing about it; those of a prompt are what it is judged by."""
    return name == "columns" and not isinstance(content, Prompt)


def _values(content: Content) -> Iterator[tuple[str, Any]]:
    for field in fields(content):
        yield field.name, getattr(content, field.name)


def _plain(value: Any) -> Any:
    """A value as JSON has it, its texts in their normal form."""
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFC", value).split())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value if value is None or isinstance(value, bool | int | float) else str(value)
