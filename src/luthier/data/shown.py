"""Rows as people are shown them: tokens with their text, and contents without a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.content import Answers, Content, Labelled, Pieces, Prompt, Related, Steps, Text, TokenIds
from luthier.data.conversation import Message
from luthier.data.form import reasoning_of

_BROKEN = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """Some characters of a row with the ids that stand for them: mostly one, more where a character needs several."""

    text: str
    ids: tuple[int, ...]
    weight: float
    """Weight as a target; 0: not learned."""


def token_pieces(
    tokenizer: Any, ids: NDArray[np.int32], weights: NDArray[np.float32], most: int | None = None
) -> list[Piece]:
    """A sequence token by token; the texts joined are what its ids decode to.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        ids: token ids.
        weights: the weight of each as a target.
        most: only the first so many tokens.
    """
    values = ids[:most].tolist()
    pieces: list[Piece] = []
    start = shown = 0  # what is decoded along as context, and what was shown so far
    for end in range(1, len(values) + 1):
        before = tokenizer.decode(values[start:shown], skip_special_tokens=False)
        text = tokenizer.decode(values[start:end], skip_special_tokens=False)
        edge = end == len(values) or (weights[end - 1] > 0) != (weights[end] > 0)
        if text.endswith(_BROKEN) and not edge:
            continue  # a character of which bytes are still to come
        pieces.append(Piece(text[len(before) :], tuple(values[shown:end]), float(weights[shown])))
        start, shown = shown, end
    return pieces


def outline(content: Content) -> list[tuple[str, str]]:
    """What a row says, without a model: parts with a name for each."""
    return list(_outline(content))


def _outline(content: Content) -> Iterator[tuple[str, str]]:
    if isinstance(content, Text):
        yield "text", content.text
    elif isinstance(content, TokenIds):
        yield "token ids", " ".join(map(str, content.ids.tolist()))
    elif isinstance(content, Pieces):
        for text, learned in content.pieces:
            yield ("learned" if learned else "not learned"), text
    elif isinstance(content, Steps):
        yield from _messages(content.context)
        for number, (step, label) in enumerate(zip(content.steps, content.labels, strict=True), start=1):
            yield f"step {number}, label {label:g}", step
    elif isinstance(content, Answers):
        yield from _messages(content.context)
        for number, answer in enumerate(content.answers):
            facts = ", ".join(f"{name} {values[number]:g}" for name, values in content.facts.items())
            yield from _messages(answer, f" [answer {number + 1}{': ' if facts else ''}{facts}]")
    elif isinstance(content, Labelled):
        yield f"text, label {content.label}", content.text
    elif isinstance(content, Related):
        yield "query", content.query
        for text, label in zip(content.texts, content.labels, strict=True):
            yield f"text, label {label:g}", text
    elif isinstance(content, Prompt):
        yield from _messages(content.messages)
    else:
        for number, message in enumerate(content.messages):
            weighs = message["role"] == "assistant" and content.weight(number) != 1
            yield from _messages([message], f", weight {content.weight(number):g}" if weighs else "")


def _messages(messages: Sequence[Message], more: str = "") -> Iterator[tuple[str, str]]:
    for message in messages:
        parts = [reasoning_of(message), message.get("content"), *map(str, message.get("tool_calls") or ())]
        yield f"{message['role']}{more}", "\n".join(part for part in parts if part)
