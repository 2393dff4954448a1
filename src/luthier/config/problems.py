"""Combinations of settings that cannot work, as the tree's validators report them."""

from dataclasses import dataclass

from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Problem:
    """A reason why settings that are fine one by one cannot work together."""

    key: str
    """The dotted key that the message is pinned to, such as `data.max_length`."""
    text: str
    """What was found, why it cannot work, what to change."""


def impossible(*problems: Problem) -> PydanticCustomError:
    """The error for a validator to raise; it carries every problem through pydantic."""
    pairs = [(problem.key, problem.text) for problem in problems]
    return PydanticCustomError(
        "impossible", "{text}", {"text": "; ".join(text for _, text in pairs), "pairs": pairs}
    )
