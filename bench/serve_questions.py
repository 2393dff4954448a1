"""Questions that clients of a server ask: a few that come again, and endless new ones that begin alike or do not."""

import random
from collections.abc import Callable
from typing import Any

_SUBJECTS = tuple("rivers bread clocks bees maps salt bridges snow kites ink wheat owls".split())  # noqa: SIM905
_WORDS = tuple("amber basin cedar delta ember fjord grove heath islet jetty knoll ledge".split())  # noqa: SIM905
QUESTIONS = 2 * len(_SUBJECTS)
FIRST_DRAWN = len(_SUBJECTS)
"""The number of the first question that is not greedy."""
Question = Callable[[str, int, int], dict[str, Any]]
"""From a model, the question's number and the most tokens of an answer to a request's body."""

_RULES = " ".join(
    f"Rule {number}: when a letter mentions {one}, look it up in the {other} ledger before you answer, and say in one "
    f"sentence where in it you found it."
    for number, (one, other) in enumerate(list(zip(_SUBJECTS, _WORDS, strict=True))[:8], 1)
)
"""A system prompt of some 270 tokens, as assistants at work have; more than a page of transformers."""


def again(model: str, number: int, tokens: int) -> dict[str, Any]:
    """One of `QUESTIONS`, of unequal lengths: the first half greedy, the others drawn."""
    text = f"Tell me {'something ' * (number % 4)}about {_SUBJECTS[number % len(_SUBJECTS)]}."
    drawn = {"temperature": 0.8, "seed": number} if number >= FIRST_DRAWN else {"temperature": 0}
    return _body(model, [{"role": "user", "content": text}], tokens, **drawn)


def alike(model: str, number: int, tokens: int) -> dict[str, Any]:
    """A question that was never asked before, behind one long system prompt."""
    return _body(model, [{"role": "system", "content": _RULES}, _new(number)], tokens, temperature=0)


def apart(model: str, number: int, tokens: int) -> dict[str, Any]:
    """A question that was never asked before, behind a short system prompt that differs from its first words on."""
    draw = random.Random(f"apart {number}")
    text = " ".join(draw.choices(_WORDS, k=24))
    return _body(model, [{"role": "system", "content": text}, _new(number)], tokens, temperature=0)


KINDS: dict[str, Question] = {"alike": alike, "apart": apart}


def _new(number: int) -> dict[str, Any]:
    words = random.Random(number).sample(_WORDS, 3)
    subject = _SUBJECTS[number % len(_SUBJECTS)]
    return {"role": "user", "content": f"Letter {number}, on {', '.join(words)}: what is known of {subject}?"}


def _body(model: str, messages: list[dict[str, Any]], tokens: int, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": messages, "max_tokens": tokens, "stream": True, **more}
