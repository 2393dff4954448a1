"""What a row of data can say, before any model's template or tokenizer sees it.

Every format (`formats/`) turns its rows into one of these; `adapt.py` turns them into what a method learns from,
`encode.py` into tokens. A conversation, the most common one, has a file of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.data.conversation import Conversation, Message

Kind = Literal[
    "conversation", "text", "tokens", "pieces", "answers", "steps", "prompt", "labelled", "related"
]


@dataclass(frozen=True)
class Text:
    """Plain text, as in pre-training: no template, every token learned."""

    text: str
    columns: dict[str, Any] = field(default_factory=dict)
    """Other columns of the row, kept for whoever wants them."""


@dataclass(frozen=True)
class TokenIds:
    """A row that was tokenised elsewhere."""

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    """Weight of each token as a target; 0 where it is not learned."""


@dataclass(frozen=True)
class Pieces:
    """Raw text in pieces, some of them learned; no template is used."""

    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Answers:
    """One context with one or several answers that are judged, not just imitated.

    Preference pairs have the chosen answer first and the rejected one second; rankings have the best first. A triple
    is made of a ranking: an answer to imitate, a better and a worse one.
    """

    context: tuple[Message, ...]
    """Messages before the answers, checked as those of a conversation are."""
    answers: tuple[tuple[Message, ...], ...]
    """Each answer: one or more messages, the last one the assistant's."""
    judged: Literal["pair", "label", "ranking", "triple"]
    facts: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Numbers that belong to the answers, one an answer: `label` (1 good, 0 bad), `score`, `margin` ..."""
    tools: list[Any] | None = None
    template_args: dict[str, Any] = field(default_factory=dict)

    def conversation(self, number: int) -> Conversation:
        """The context with one of the answers; only that answer is learned."""
        answer = self.answers[number]
        weights = (*[0.0] * len(self.context), *[float(m["role"] == "assistant") for m in answer])
        return Conversation([*self.context, *answer], self.tools, self.template_args, weights)


@dataclass(frozen=True)
class Steps:
    """An answer in steps, each with a label (process rewards)."""

    context: tuple[Message, ...]
    steps: tuple[str, ...]
    labels: tuple[float, ...]


@dataclass(frozen=True)
class Prompt:
    """A question to be answered by the model itself (reinforcement learning), with whatever its reward needs."""

    messages: tuple[Message, ...]
    columns: dict[str, Any] = field(default_factory=dict)
    tools: list[Any] | None = None
    template_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Labelled:
    """A text and what it is."""

    text: str
    label: str | float
    """The name of a class, or a number."""


@dataclass(frozen=True)
class Related:
    """A query and texts that belong to it, or do not."""

    query: str
    texts: tuple[str, ...]
    labels: tuple[float, ...]
    """How much each belongs to the query, 0 to 1."""


Content = Conversation | Text | TokenIds | Pieces | Answers | Steps | Prompt | Labelled | Related


def kind_of(content: Content) -> Kind:
    """The name of a content's kind, for methods and messages."""
    kinds: Sequence[tuple[type, Kind]] = (
        (Conversation, "conversation"),
        (Text, "text"),
        (TokenIds, "tokens"),
        (Pieces, "pieces"),
        (Answers, "answers"),
        (Steps, "steps"),
        (Prompt, "prompt"),
        (Labelled, "labelled"),
        (Related, "related"),
    )
    return next(kind for of, kind in kinds if isinstance(content, of))
