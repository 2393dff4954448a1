"""Reads JSON strictly and compares it by meaning; shared by the metrics on JSON."""

import json
import math
from dataclasses import dataclass

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


@dataclass(frozen=True)
class Document:
    """A text that was valid JSON. It wraps the value because `null` is a value too."""

    value: Json


def read_json(text: str) -> Document | None:
    """The JSON that the whole text is, or None if it is not exactly one JSON document.

    As strict as a program that is handed the text: a code fence, words before or after, a key twice in one
    object, `NaN` and `Infinity`, a number too large to hold or nesting too deep to read all make it invalid.
    White space around it is allowed, as in RFC 8259.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_distinct_keys, parse_constant=_no_constant, parse_float=_finite_float
        )
    except (ValueError, RecursionError):
        return None
    return Document(value)


def same(left: Json, right: Json) -> bool:
    """Whether two values mean the same JSON.

    The order of keys does not matter, 1 equals 1.0, but true is no number (in Python `True == 1`).
    Uses a list of open comparisons, not recursion, so that no depth of nesting can break it.
    """
    todo = [(left, right)]
    while todo:
        a, b = todo.pop()
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            todo.extend((a[key], b[key]) for key in a)
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            todo.extend(zip(a, b, strict=True))
        elif isinstance(a, bool) != isinstance(b, bool) or a != b:
            return False
    return True


def _distinct_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number
