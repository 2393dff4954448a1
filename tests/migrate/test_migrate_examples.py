"""The configurations that the tools ship: each imports, or is refused with the reason in the table."""

import json
from collections import Counter

import pytest

from luthier.config.load import config_from_dict, load_config
from luthier.config.source import read_file
from luthier.migrate.findings import Kind
from luthier.migrate.written import written
from migrate_parts import SHARED
from migrate_table import TABLE, Example, examples, table

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the examples are not on this machine")


@pytest.fixture(scope="module")
def every() -> list[Example]:
    return examples()


def test_every_file_imports_or_is_refused_with_a_reason(every):
    assert len(every) > 200
    assert all(example.result is not None or len(example.reason) > 20 for example in every)
    assert sum(example.result is not None for example in every) > len(every) / 2


def test_what_is_written_reads_back_to_the_same_configuration(every, tmp_path):
    file = tmp_path / "run.yaml"
    for example in every:
        if example.result is not None:
            file.write_text(written(example.result), encoding="utf-8")
            assert load_config(file) == config_from_dict(example.result.values), example.name


def test_no_key_is_left_without_a_word(every):
    for example in every:
        if example.result is None:
            continue
        given = read_file(SHARED / example.name).values
        keys = {key for key, value in given.items() if value is not None}
        assert keys <= {finding.key.partition(".")[0] for finding in example.result.findings}, example.name


def test_every_key_that_the_tools_use_themselves_is_known(every):
    """Their examples hold no misspelt key, so one that is not known is missing in the tables."""
    unknown = Counter(
        (finding.key, finding.text)
        for example in every
        if example.result is not None
        for finding in example.result.of(Kind.UNKNOWN)
    )
    assert not unknown


def test_the_table_is_up_to_date(every):
    """If not: python tests/migrate_table.py"""
    assert TABLE.read_text(encoding="utf-8") == table(every)


def test_the_sets_of_the_examples_are_those_of_the_source(every):
    """Names of data sets of Axolotl's examples, counted."""
    for example in every:
        if example.result is None or not example.name.startswith("axolotl/"):
            continue
        given = read_file(SHARED / example.name).values
        sources = given.get("datasets") or given.get("pretraining_dataset") or []
        names = Counter(entry["path"] for entry in sources if "data_files" not in entry)
        config = config_from_dict(example.result.values)
        found = Counter(entry.path.removeprefix("hf:").partition("@")[0] for entry in config.data.all_sets)
        assert not names - found, (example.name, json.dumps(given.get("datasets")))
