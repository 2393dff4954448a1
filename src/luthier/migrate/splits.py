"""Slices of a split, as the `datasets` library writes them: `train[:20%]`, `train[100:200]`."""

import re
from dataclasses import dataclass

_SLICE = re.compile(r"(?P<split>[^\[\]+]+)\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]")


@dataclass(frozen=True)
class Slice:
    """A split, and how much of it is used."""

    split: str
    rows: int | None = None
    """This many rows; None if the slice is none, or a share."""
    share: float | None = None
    """This share of the rows."""
    at_end: bool = False
    """Whether the rows are the last ones."""


def read_slice(text: str) -> Slice | None:
    """What a split means; None for forms that cannot be told, such as several splits added up."""
    if "[" not in text:
        return None if "+" in text else Slice(text)
    match = _SLICE.fullmatch(text.strip())
    if match is None:
        return None
    start, stop = match["start"], match["stop"]
    if any(bound and bound.endswith("%") for bound in (start, stop)):
        return _share(match["split"], start, stop)
    low, high = int(start or 0), int(stop) if stop else None
    if low < 0 and high is None:
        return Slice(match["split"], rows=-low, at_end=True)
    if high is None or low < 0 or high <= low:
        return None
    return Slice(match["split"], rows=high - low)


def _share(split: str, start: str | None, stop: str | None) -> Slice | None:
    if not all(bound is None or bound.endswith("%") for bound in (start, stop)):
        return None
    low = int(start[:-1]) if start else 0
    high = int(stop[:-1]) if stop else 100
    low, high = (low + 100 if low < 0 else low), (high + 100 if high < 0 else high)
    if not 0 <= low < high <= 100:
        return None
    return Slice(split, share=(high - low) / 100, at_end=low > 0 and high == 100)
