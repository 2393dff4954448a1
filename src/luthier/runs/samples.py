"""Answers of the model to held-out prompts, before and after training: `samples.jsonl`."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from luthier.runs.lines import LineFile, read_lines

When = Literal["before", "after"]


@dataclass(frozen=True)
class Sample:
    """One answer. `index` says which prompt it answers, so that before and after can be laid side by side."""

    when: When
    index: int
    prompt: str
    answer: str
    reference: str | None = None
    """What the held-out row says, if it says something."""


def append_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Adds answers to the file. Raises RunError where the disk is full, read-only or forbidden."""
    with LineFile(path) as file:
        for sample in samples:
            file.add(json.dumps(asdict(sample), ensure_ascii=False))


def read_samples(path: Path) -> list[dict[When, Sample]]:
    """The answers by prompt: for each `index` what there is `before` and `after`, the newest of each.

    Raises RunError where a line is not a JSON object.
    """
    found: dict[int, dict[When, Sample]] = {}
    for row in read_lines(path):
        when, index, reference = row.get("when"), row.get("index"), row.get("reference")
        if when not in ("before", "after") or not isinstance(index, int):
            continue
        sample = Sample(
            when,
            index,
            str(row.get("prompt", "")),
            str(row.get("answer", "")),
            None if reference is None else str(reference),
        )
        found.setdefault(index, {})[when] = sample
    return [found[index] for index in sorted(found)]
