"""Values as other tools write them: numbers in quotes, `yes`, lists with commas.

Each reader takes the value of a key and gives the one that Luthier's key holds, or raises Misread.
"""

import json
import math
from typing import Any

from luthier.config.source import read_value
from luthier.config.words import shown
from luthier.errors import ConfigError

YES = ("true", "yes", "on", "1")
NO = ("false", "no", "off", "0")
OFF = (None, False, 0, "", "none", "no", "off", "false", "null", "disabled")
"""Values that switch something off, in lower case."""


class Misread(ValueError):
    """The value is not of the kind that the key takes; the message says what is expected."""


def is_off(value: Any) -> bool:
    """Whether a value switches its key off, in any of the ways that tools write that."""
    if isinstance(value, list):
        return all(is_off(item) for item in value)
    if isinstance(value, dict):
        return not value
    return (value.strip().lower() if isinstance(value, str) else value) in OFF


def switch(value: Any) -> bool:
    """A boolean, also as YAML 1.1 writes it."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in YES:
        return True
    if word in NO:
        return False
    raise Misread(f"is {shown(value)}, but it must be true or false")


def number(value: Any) -> float:
    """A finite number, also in quotes; a whole one comes back as an int."""
    read = _from_text(value)
    if isinstance(read, bool) or not isinstance(read, int | float) or not math.isfinite(read):
        raise Misread(f"is {shown(value)}, but it must be a number")
    return read


def real(value: Any) -> float:
    """A finite number as a float."""
    return float(number(value))


def whole(value: Any) -> int:
    """A whole number, also as 8.0."""
    read = number(value)
    if read != int(read):
        raise Misread(f"is {shown(value)}, but it must be a whole number")
    return int(read)


def text(value: Any) -> str:
    """Text; numbers are taken as they are written."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise Misread(f"is {shown(value)}, but it must be text")


def names(value: Any) -> list[str]:
    """Names in a list, or in text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise Misread(f"is {shown(value)}, but it must be names, such as `a,b`")
    return [part.strip() for part in parts if part.strip()]


def numbers(value: Any) -> list[float]:
    """Numbers in a list, or in text with commas."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return [number(part) for part in parts]


def section(value: Any) -> dict[str, Any]:
    """A section, also as JSON text. Keys without a value are absent."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise Misread(f"is {shown(value)}, which is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Misread(f"is {shown(value)}, but it must be a section with keys")
    return {key: item for key, item in value.items() if item is not None}


def _from_text(value: Any) -> Any:
    """The number in a text such as `2e-5`, `1_000` or `7.`; anything else stays what it is."""
    if not isinstance(value, str):
        return value
    try:
        return read_value(value.strip().replace("_", ""))
    except ConfigError:
        return value
