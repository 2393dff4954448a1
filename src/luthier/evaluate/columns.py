"""The other columns of the rows, for metrics that read one."""

import json
from collections.abc import Sequence
from typing import Any

from luthier.data.pipeline import Plan
from luthier.errors import DataError


def texts_of(plan: Plan, column: str, numbers: Sequence[int]) -> list[str]:
    """What stands in one column of the rows with these numbers, as text: a list's texts are joined by line ends.

    Raises:
        DataError: a row does not have it.
    """
    wanted, found = set(numbers), dict[int, str]()
    for row, _ in plan.open().rows():
        if row.number in wanted:
            value = (row.record or {}).get(column)
            if value is None:
                known = ", ".join(sorted(row.record or {})) or "nothing"
                raise DataError(f"{row.where} has no column {column!r}, which a metric reads; it has {known}")
            found[row.number] = _text(value)
    return [found[number] for number in numbers]


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
