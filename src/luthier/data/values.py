"""JSON values as they stand in rows: their names for people, and JSON written as text."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from luthier.errors import RowRefused

_LARGEST = 1e300
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")


def in_words(value: Any) -> str:
    """The JSON word for a value's type, with its article."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def from_json(text: str, what: str) -> Any:
    """The value that a text holds. Raises RowRefused, naming `what`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise RowRefused(f"{what} is text that is not JSON ({fault})") from fault


def shape_in(record: dict[str, Any], shapes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The first of these sets of columns that all hold something; failing that, the first that is there at all."""
    for shape in shapes:
        if all(record.get(name) is not None for name in shape):
            return shape
    return next((shape for shape in shapes if all(name in record for name in shape)), shapes[0])


def text_in(record: dict[str, Any], column: str) -> str:
    """The text of a column. Raises RowRefused if it holds anything else."""
    value = record[column]
    if not isinstance(value, str):
        raise RowRefused(f"`{column}` is {in_words(value)}, not text")
    return value


def unpacked(value: Any, what: str) -> Any:
    """What a cell of a table of text (CSV) holds: JSON text of a list or a number is that; anything else stays.

    Raises:
        RowRefused: if it begins like a list and is none.
    """
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return from_json(value, what)
    return float(value) if _NUMBER.fullmatch(value) else value


def number_in(value: Any, what: str) -> float:
    """A finite number, true and false as 1 and 0. Raises RowRefused, naming `what`."""
    if not isinstance(value, bool | int | float):
        raise RowRefused(f"{what} is {in_words(value)}, not a number")
    number = float(value) if abs(value) < _LARGEST else math.inf
    if not math.isfinite(number):
        raise RowRefused(f"{what} is not a finite number")
    return number


def listed(names: Iterable[str]) -> str:
    """Names of columns for a message, the first twenty of them."""
    names = list(names)
    return ", ".join(f"`{name}`" for name in names[:20]) + (", …" if len(names) > 20 else "") or "none"
