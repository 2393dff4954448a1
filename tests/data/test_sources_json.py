"""JSON read piece by piece says what JSON read at once says, wherever the pieces are cut."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.sources import json_text, read_rows
from luthier.errors import DataError

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
rows = st.lists(st.dictionaries(st.text(max_size=4), values, max_size=3), min_size=1, max_size=6)


def read(folder: Path, content: str, portion: int) -> list[Any]:
    """The records of a file that is read in portions of so many bytes."""
    file = folder / "a.json"
    file.write_text(content, encoding="utf-8", errors="surrogatepass")
    with mock.patch.object(json_text, "_PORTION", portion):
        return [row.record for row in read_rows([file])]


@settings(deadline=None, max_examples=150)
@given(rows, st.booleans(), st.sampled_from([None, 0, 3]), st.booleans(), st.integers(1, 30))
def test_pieces_give_what_the_whole_gives(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[Any],
    escaped: bool,
    indent: int | None,
    wrapped: bool,
    portion: int,
) -> None:
    document: Any = {"before": {"x": "]"}, "rows": records, "after": -1.5e-7} if wrapped else records
    text = json.dumps(document, ensure_ascii=escaped, indent=indent)
    assert read(tmp_path_factory.mktemp("json"), text, portion) == records


@settings(deadline=None, max_examples=150)
@given(rows, st.booleans(), st.integers(1, 30), st.data())
def test_a_file_that_is_cut_short_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[Any],
    wrapped: bool,
    portion: int,
    data: st.DataObject,
) -> None:
    text = json.dumps({"n": 1, "rows": records} if wrapped else records)
    cut = data.draw(st.integers(1, len(text) - 1))
    with pytest.raises(DataError, match=r"a\.json is not valid JSON: .* at line 1, column"):
        read(tmp_path_factory.mktemp("json"), text[:cut], portion)


@settings(deadline=None, max_examples=150)
@given(st.text(st.sampled_from('[]{}",:\\ \n1e-.tu') | st.characters(), max_size=30), st.integers(1, 12))
def test_any_text_is_rows_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, content: str, portion: int
) -> None:
    folder = tmp_path_factory.mktemp("json")
    try:
        found = read(folder, "[" + content, portion)
    except DataError as fault:
        assert str(folder / "a.json") in str(fault)
        return
    assert len(found) == len(json.loads("[" + content))
