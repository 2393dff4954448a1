"""A program that runs a model, as far as comparing needs it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, Self

from torch import Tensor

Messages = Sequence[Mapping[str, Any]]


class Engine(Protocol):
    """What was exported, loaded by a program that runs it. Used in a `with`, which frees it."""

    name: str
    """What people call the program."""
    caveat: str
    """What agreement with this program does not show; empty if it is the one that people will use."""

    def __enter__(self) -> Self:
        """Itself."""
        ...

    def __exit__(self, *_: object) -> None:
        """Frees the memory."""
        ...

    def faults(self) -> list[str]:
        """What the artefact says of itself that is not so, without running it."""
        ...

    def ids(self, text: str) -> list[int]:
        """Tokens of a text with control tokens in it; nothing is added."""
        ...

    def render(self, messages: Messages, tools: Sequence[Any] | None) -> str | None:
        """The text of a conversation up to where the answer begins, by the template that came with the artefact; None
        if none came with it.
        """
        ...

    def logits(self, ids: Sequence[int], last: int) -> Tensor:
        """Scores of the token behind each of the last `last` tokens: [T, V], fp32."""
        ...

    def greedy(self, ids: Sequence[int], most: int, ends: Collection[int]) -> list[int]:
        """The likeliest next tokens one after another, at most so many, up to and with the first of `ends`."""
        ...
