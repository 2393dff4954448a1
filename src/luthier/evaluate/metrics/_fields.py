"""Counts how often the top-level fields of JSON objects are right; shared by precision, recall and F1."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from luthier.evaluate.intervals import Floats, Sums
from luthier.evaluate.metrics._json import Json, read_json, same


@dataclass(frozen=True)
class Counts:
    """Outcomes of one field, or of all together."""

    right: int
    """Given with the wanted value."""
    given: int
    """In a prediction, right or not."""
    wanted: int
    """In a reference."""

    @property
    def precision(self) -> float:
        """Share of what was given that is right."""
        return self.right / self.given if self.given else self._of_nothing()

    @property
    def recall(self) -> float:
        """Share of what was wanted that was given right."""
        return self.right / self.wanted if self.wanted else self._of_nothing()

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 2·right / (given + wanted)."""
        total = self.given + self.wanted
        return 2 * self.right / total if total else self._of_nothing()

    def _of_nothing(self) -> float:
        # 0/0: perfect if nothing was wanted and nothing given, else worthless.
        return float(self.given == self.wanted)


def measure_fields(
    name: str, value: Callable[[Counts], float], predictions: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """One number over all fields (micro average) and one for each field that a reference has.

    Only rows whose reference is a JSON object count; with none of them, the result is empty. A prediction
    that is no object gives no field. A field that only predictions have counts against the number over all
    fields. Fields come with the most wanted first.
    """
    right, given, wanted = Counter[str](), Counter[str](), Counter[str]()
    num_objects = 0
    for prediction, reference in zip(predictions, references, strict=True):
        target, answer = _object(reference), _object(prediction) or {}
        if target is None:
            continue
        num_objects += 1
        wanted.update(target.keys())
        given.update(answer.keys())
        right.update(key for key in answer if key in target and same(answer[key], target[key]))
    if not num_objects:
        return {}
    result = {name: value(Counts(right.total(), given.total(), wanted.total()))}
    for key in sorted(wanted, key=lambda key: (-wanted[key], key)):
        result[f"{name}/{key}"] = value(Counts(right[key], given[key], wanted[key]))
    return result


def tally_fields(
    kind: Literal["precision", "recall", "f1"], predictions: Sequence[str], references: Sequence[str]
) -> Sums | None:
    """The number over all fields as sums of fields that are right, given and wanted."""
    rows = [[0, 0, 0] for _ in references]
    objects = [_object(reference) for reference in references]
    if not any(target is not None for target in objects):
        return None
    for row, prediction, target in zip(rows, predictions, objects, strict=True):
        if target is not None:
            answer = _object(prediction) or {}
            right = sum(key in target and same(answer[key], target[key]) for key in answer)
            row[:] = right, len(answer), len(target)

    def value(sums: Floats) -> Floats:
        right, given, wanted = sums[..., 0], sums[..., 1], sums[..., 2]
        above, below = {
            "precision": (right, given),
            "recall": (right, wanted),
            "f1": (2 * right, given + wanted),
        }[kind]
        whole = np.maximum(below, 1)  # counts: 0 or at least 1
        return np.where(below > 0, above / whole, given == wanted)

    return Sums(np.array(rows, dtype=np.float64), value)


def _object(text: str) -> dict[str, Json] | None:
    document = read_json(text)
    return document.value if document is not None and isinstance(document.value, dict) else None
