"""What was found and what was expected, in plain words, from a value and the JSON Schema of its field.

The same words serve the tree and the options of methods and optimizers, whatever library checks them.
"""

import json
import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from luthier.config.source import read_value
from luthier.errors import ConfigError

Schema = dict[str, Any]

_KINDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a section",
}
_YES_NO = {"yes": "true", "on": "true", "no": "false", "off": "false", "1": "true", "0": "false"}


def expected(schema: Schema) -> str:
    """The values that a schema allows, such as `a whole number of at least 1`."""
    if "expected" in schema:
        return schema["expected"]
    if "anyOf" in schema:
        kinds = [expected(kind) for kind in schema["anyOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return shown(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    kind = schema.get("type")
    if kind == "integer":
        return "a whole number" + _bounds(schema)
    if kind == "number":
        return "a number" + _bounds(schema)
    if kind == "string":
        pattern = f" that matches {schema['pattern']}" if "pattern" in schema else ""
        return "text" + (pattern or (" that is not empty" if schema.get("minLength") else ""))
    if kind == "array":
        return f"a list{_lengths(schema)} of {expected(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"keys of your own, each with {expected(schema['additionalProperties'])}"
    return {"boolean": "true or false", "object": "a section with keys", "null": "null"}.get(
        str(kind), "a value"
    )


def _bounds(schema: Schema) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    parts = [
        f"{words} {bound:g}"
        for words, bound in (("of at least", low), ("above", above), ("of at most", high), ("below", below))
        if bound is not None
    ]
    return "".join(f" {part}" if index == 0 else f" and {part}" for index, part in enumerate(parts))


def _lengths(schema: Schema) -> str:
    least, most = schema.get("minItems"), schema.get("maxItems")
    if least is not None and least == most:
        return f" of exactly {least}"
    return " of at least one" if least else ""


def shown(value: Any) -> str:
    """A value as it would be written in YAML, cut to a readable length, safe to print."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 400:
        return "a number of over 100 digits"
    if isinstance(value, str) and len(value) > 60:
        value = value[:57] + "..."
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = "a value too large to show"
    if len(text) > 70:
        text = text[:67] + "..."
    return text.encode("utf-8", "backslashreplace").decode()


def found(value: Any, schema: Schema) -> str:
    """The value, and its kind where that is what is wrong with it."""
    if value is None:
        return "null"
    allowed = {part.get("type") for part in _parts(schema)}
    fits = (
        (isinstance(value, str) and (allowed & {"string"} or any("enum" in part for part in _parts(schema))))
        or (
            isinstance(value, int | float) and not isinstance(value, bool) and allowed & {"integer", "number"}
        )
        or (isinstance(value, list) and "array" in allowed)
        or (isinstance(value, dict) and "object" in allowed)
    )
    kind = next((words for known, words in _KINDS.items() if isinstance(value, known)), type(value).__name__)
    return shown(value) if fits or isinstance(value, bool) else f"{shown(value)} ({kind})"


def hint(value: Any, schema: Schema) -> str:
    """What was probably meant, as `; write 10000`; empty if nothing comes to mind."""
    parts = list(_parts(schema))
    allowed = {part.get("type") for part in parts}
    choices = [str(choice) for part in parts for choice in part.get("enum", ())]
    if isinstance(value, str):
        if choices:
            return did_you_mean(value, choices)
        if "boolean" in allowed and value.lower() in _YES_NO:
            return f"; write {_YES_NO[value.lower()]}"
        return "; write it without quotes" if _reads_as(value, allowed) else ""
    if isinstance(value, bool):
        return ""
    if isinstance(value, float) and value.is_integer() and "integer" in allowed and abs(value) < 2**63:
        return f"; write {int(value)}"
    if "boolean" in allowed and value in (0, 1):
        return f"; write {'true' if value else 'false'}"
    return "; it must be finite" if isinstance(value, float) and not math.isfinite(value) else ""


def wrong(key: str, value: Any, schema: Schema) -> str:
    """The whole message about a value that does not fit its field."""
    return f"{key} is {found(value, schema)}; expected {expected(schema)}{hint(value, schema)}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?` with the nearest of the known names; empty if none is near."""
    near = nearest(word, list(known))
    return f"; did you mean {near}?" if near else ""


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known name that a misspelt one is closest to, if any is close."""
    by_lower = {name.lower().replace("-", "_"): name for name in known}
    matches = get_close_matches(word[:200].lower().replace("-", "_"), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def _parts(schema: Schema) -> Iterable[Schema]:
    for part in schema.get("anyOf", [schema]):
        yield from _parts(part) if "anyOf" in part else (part,)


def _reads_as(text: str, allowed: set[Any]) -> bool:
    """Whether quotes alone keep the text from being what was expected."""
    try:
        value = read_value(text)
    except ConfigError:
        return False
    if isinstance(value, bool):
        return "boolean" in allowed
    return isinstance(value, int | float) and bool(allowed & {"integer", "number"})
