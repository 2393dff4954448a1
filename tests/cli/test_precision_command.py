"""`luthier precision`: from a config to what to put into it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.cli.precision import command
from luthier.config.load import load_config
from luthier.config.tree import Config
from luthier.errors import ConfigError
from tiny_runs import tiny_config


def written(folder: Path, **changes: Any) -> tuple[str, Config]:
    made = tiny_config(folder, "run", quant="nf4", **changes)
    values = {
        "model": made.model.name,
        "data": {
            "path": str(folder / "train.jsonl"),
            "eval_path": str(folder / "test.jsonl"),
            "cache": False,
        },
        "lora": {},
        "quant": "nf4",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "run.yaml"), made


def test_it_prints_a_section_that_a_config_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = written(tmp_path)
    command([file], budget="2.5", tokens=400)
    said = capsys.readouterr().out
    table, _, section = said.partition("\nquant:\n")
    assert "left in 16 bits; all linear layers take" in table and "loss on held-out rows: " in table
    proposed = yaml.safe_load("quant:\n" + section)
    (tmp_path / "more.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load((tmp_path / "run.yaml").read_text()), **proposed})
    )
    quant = load_config(tmp_path / "more.yaml").quant
    assert quant is not None and quant.skip == proposed["quant"]["skip"] and len(quant.skip) > 0
    command([file, "seed=0"], budget="2.5", tokens=400, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["skip"] == quant.skip and len(found["layers"]) == 14
    loss = found["loss"]
    assert abs(loss["chosen"] - loss["plain"]) <= abs(loss["stored"] - loss["plain"]) + 0.05


def test_what_cannot_be_measured_is_told(tmp_path: Path) -> None:
    file, _ = written(tmp_path)
    with pytest.raises(ConfigError, match="there is nothing to measure"):
        command([])
    with pytest.raises(ConfigError, match="has no section quant"):
        command([file, "quant=null"])
    with pytest.raises(ConfigError, match="linear layers take"):
        command([file], budget="0.1", tokens=100)
