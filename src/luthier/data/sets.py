"""Which data set a row is of, where there are several, so that a run can tell how many tokens each gives.

The number of the set travels as a column of its examples. Rows that are joined into blocks have none.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from luthier.config.data_section import SetSection
from luthier.data.batch import Batch, Example

SET = "set"
"""Name of the column."""


def of_set(example: Example, number: int) -> Example:
    """The example with the number of its set."""
    return replace(example, columns=example.columns | {SET: float(number)})


def set_names(sets: Sequence[SetSection]) -> tuple[str, ...]:
    """A short name for each set: that of its file or folder, with a number where it is taken."""
    seen: Counter[str] = Counter()
    names = []
    for one in sets:
        stem = Path(one.path.rstrip("/").rpartition("#")[2]).stem or "set"
        seen[stem] += 1
        names.append(stem if seen[stem] == 1 else f"{stem}-{seen[stem]}")
    return tuple(names)


def tokens_of_sets(batches: Sequence[Batch], num_sets: int) -> list[float]:
    """Tokens that the rows of each set would have if nothing were shared. The batches are on the CPU."""
    counts = [0.0] * num_sets
    for batch in batches:
        if SET not in batch.columns:
            continue
        starts = batch.starts_S1.tolist()
        known = zip(batch.paths(), batch.columns[SET].tolist(), batch.columns["row"].tolist(), strict=True)
        for path, number, row in known:
            if row >= 0 and not math.isnan(number):
                counts[int(number)] += sum(starts[s + 1] - starts[s] for s in path)
    return counts
