"""The numbers of a run over its steps: `metrics.jsonl`, one JSON object a line.

A row is `{"kind": "train", "step": 3, "time": 1753000000.0, "loss": 1.25, …}`. Kinds that Luthier writes:

- `train`: `loss`, `lr`, `grad_norm`, `tokens_per_second`, `tokens` (of this step), `num_tokens` (of all so far);
- `eval`: `loss` on the held-out rows, `perplexity`, and of plain text `bits_per_byte`;
- `evaluation`: task metrics such as `exact_match`, with `when` being `before` or `after`.

JSON has no NaN: a value that is not finite is written as null and its name is put in `nonfinite`.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, SupportsFloat

from luthier.runs.atomic import atomic_write_bytes
from luthier.runs.lines import LineFile, is_object, read_lines, whole_lines

RESERVED = ("kind", "step", "time", "nonfinite")


class MetricsWriter:
    """Adds rows to a metrics file. Each row is in the file when `write` returns.

    Raises RunError where the disk is full, read-only or may not be written to; the file stays whole.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = LineFile(path)

    def write(self, kind: str, step: int, values: Mapping[str, SupportsFloat | str | None]) -> None:
        """Adds one row. Values are numbers (also 0-d arrays and tensors), strings, booleans or None."""
        row: dict[str, Any] = {"kind": kind, "step": step, "time": round(time.time(), 3)}
        nonfinite: list[str] = []
        for name, value in values.items():
            assert name not in RESERVED, f"{name} is a name of the row itself"
            row[name] = _plain(value)
            if isinstance(row[name], float) and not math.isfinite(row[name]):
                row[name] = None
                nonfinite.append(name)
        if nonfinite:
            row["nonfinite"] = nonfinite
        self._file.add(json.dumps(row, ensure_ascii=False, allow_nan=False))

    def truncate_after(self, step: int) -> None:
        """Removes the rows of later steps, so that a run resumed from `step` has each step once."""
        lines = [line for line in whole_lines(self.path) if not _is_later(line, step)]
        self._file.close()
        try:
            atomic_write_bytes(self.path, b"".join(line + b"\n" for line in lines))
        finally:
            self._file = LineFile(self.path)

    def close(self) -> None:
        """Closes the file. A second call does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every row in order, without a last line that was cut when its process died. An absent file has none.

    Raises RunError that names the line where another one is not a JSON object.
    """
    return read_lines(path)


def series(rows: list[dict[str, Any]], kind: str, name: str) -> list[tuple[int, float | None]]:
    """The points (step, value) of one number; None stands for a value that was not finite."""
    points: list[tuple[int, float | None]] = []
    for row in rows:
        value = row.get(name)
        if row.get("kind") != kind or not isinstance(row.get("step"), int) or name not in row:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            points.append((row["step"], float(value) if math.isfinite(value) else None))
        elif name in row.get("nonfinite", ()):
            points.append((row["step"], None))
    return points


def last_value(rows: list[dict[str, Any]], kind: str, name: str) -> float | None:
    """The newest finite value of one number; None if there is none."""
    return next((value for _, value in reversed(series(rows, kind, name)) if value is not None), None)


def _plain(value: SupportsFloat | str | None) -> str | int | float | None:
    if value is None or isinstance(value, str | bool | int):
        return value
    return float(value)


def _is_later(line: bytes, step: int) -> bool:
    """Whether a row belongs to a later step. A line that cannot be read is kept: it is not ours to lose."""
    if not is_object(line):
        return False
    found = json.loads(line).get("step")
    return isinstance(found, int) and found > step
