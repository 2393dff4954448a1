"""What both models are asked: prompts as the trained model saw them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OUR_WORDS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three things that are red, one a line:\n- ",
    "Translate into German: Good morning, how did you sleep?",
    'Answer in JSON with the keys "name" and "age": Mia turned 7 last week.',
    "A train leaves at 9:40 and takes 85 minutes. When does it arrive? Think step by step.",
    "def fibonacci(n):\n    ",
    "Naïve café owners paid 12,345 € or “really?” 😀 日本語",
)
"""Asked where the data of the run is gone."""


@dataclass(frozen=True)
class Prompt:
    """A text to go on from."""

    text: str
    ids: tuple[int, ...]
    """Its tokens, as the trained model sees it."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """The conversation that it was rendered from, if the template alone decides its text."""
    tools: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Prompts:
    """Prompts, and where they come from."""

    prompts: Sequence[Prompt]
    source: str
    """In words that fit behind "8 prompts from"."""
    note: str = ""
    """What a person should know about them, as a sentence."""
