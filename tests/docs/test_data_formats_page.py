"""The page about formats says what the code does: every format, its columns, and rows that are read as it says."""

import json
import re

import pytest

from luthier.config.data_section import SetSection
from luthier.data.convert import Formats
from luthier.data.detect import Format, detect, known_formats
from luthier.data.notes import Notes
from luthier.data.sources import Row
from luthier.data.turns import tags_from
from training_parts import ROOT

PAGE = (ROOT / "docs" / "data-formats.md").read_text(encoding="utf-8")
SECTIONS = {
    part.split("\n", 1)[0]: part.split("\n", 1)[1] for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
}


def columns_of(format: Format) -> str:
    """The line of a format's columns, as the page has it."""
    shapes = [shape for shape in format.sufficient if "kto_tag" not in shape]
    line = " or ".join(", ".join(f"`{name}`" for name in shape) for shape in shapes)
    swapped = len(shapes) < len(format.sufficient)
    return f"Columns: {line}" + (", each also with `kto_tag` in the place of `label`" if swapped else "")


def test_every_format_has_its_section() -> None:
    assert set(SECTIONS) - {"Lists of other tools"} == {format.name for format in known_formats()}


@pytest.mark.parametrize("format", known_formats(), ids=lambda format: format.name)
def test_columns_and_rows_are_those_of_the_format(format: Format) -> None:
    section = SECTIONS[format.name]
    assert section.strip().splitlines()[0] == columns_of(format)
    (block,) = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    formats = Formats(SetSection(path="page", format=None if format.shapes else format.name))
    for number, line in enumerate(block.strip().splitlines(), start=1):
        record, notes = json.loads(line), Notes()
        assert (detect(record) == format) == bool(format.shapes)
        formats.convert(Row(number, "page", number, record), notes)
        assert [note for note in notes.lines() if "not used" in note] == []


def test_the_names_of_tags_are_those_that_are_read() -> None:
    (fields,) = re.findall(r"# fields: (.*)", PAGE)
    (roles,) = re.findall(r"# roles: (.*)", PAGE)
    tags_from(dict.fromkeys(f"{fields}, {roles}".split(", "), "x"))
