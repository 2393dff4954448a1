"""Notes about columns: one line for all rows, however the nulls fall, and no more of it than a person can read."""

import itertools
import json

from luthier.config.data_section import SetSection
from luthier.data.convert import convert_row, formats_of
from luthier.data.notes import Notes
from luthier.data.sources import Row


def test_columns_that_are_not_used_are_one_line_for_any_nulls() -> None:
    section, notes = SetSection(path="x"), Notes()
    formats = formats_of(section)
    names = [f"extra{i}" for i in range(6)]
    for number, filled in enumerate(itertools.product((None, "v"), repeat=6), start=1):
        record = {"prompt": "q", "completion": "a", **dict(zip(names, filled, strict=True))}
        convert_row(Row(number, "x", number, record), section, formats, notes)
    (line,) = notes.lines()
    assert all(f"`{name}`" in line for name in names) and line.endswith("(63 rows, first x:2)")


def test_notes_are_bounded_and_every_row_is_counted() -> None:
    parts = [Notes(), Notes()]
    for number in range(2000):
        parts[number % 2].add(f"what {number}", "x:1")
        parts[number % 2].add("columns", "x:1", [f"c{number}"])
    parts[0].merge(Notes.from_json(json.loads(json.dumps(parts[1].to_json()))))
    assert len(parts[0].lines()) <= 201 and len(parts[0].columns["columns"]) <= 200
    assert sum(count for count, _ in parts[0].said.values()) == 4000
