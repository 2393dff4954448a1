"""The page about sources says what the code does."""

import re
from pathlib import Path

import yaml

from luthier.config.data_section import SetSection
from luthier.config.load import load_config
from luthier.config.paths import DATA_SUFFIXES, PACKED
from luthier.data.sources.kinds import KINDS, kind_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data-sources.md").read_text(encoding="utf-8")


def test_every_block_is_a_config_that_loads(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        file = tmp_path / "run.yaml"
        file.write_text("model: demo:tiny\nmethod: sft\n" + block)
        assert load_config(str(file)).data.all_sets
        assert "data" in yaml.safe_load(block)


def test_every_kind_of_file_and_option_is_there() -> None:
    rows = "\n".join(line for line in PAGE.splitlines() if line.startswith("| `."))
    assert all(f"`{suffix}`" in rows for suffix in DATA_SUFFIXES)
    assert tuple(KINDS) == DATA_SUFFIXES
    for suffix in DATA_SUFFIXES:
        packed = kind_of(f"a{suffix}{PACKED[0]}")
        assert (packed is None) == (suffix in (".parquet", ".arrow"))
    told = set(re.findall(r"`(\w+)", PAGE))
    elsewhere = {"path", "format", "columns", "tags"}  # the last three stand on the page about formats
    assert set(SetSection.model_fields) - elsewhere <= told
