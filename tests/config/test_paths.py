"""Which paths of data `luthier check` accepts, and how they are written down for a run."""

import json
import os
from pathlib import Path

import pytest

from luthier.config.load import load_config
from luthier.config.paths import absolute_data, is_data_name, path_faults
from luthier.config.places import Place, Places
from luthier.errors import LuthierError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with some data in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "sheet.xlsx").write_text("")
    (tmp_path / "registry.json").write_text("{}")
    (tmp_path / "axolotl.yml").write_text("")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "b.csv.gz").write_text("")
    (tmp_path / "bare").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def faults(data: object) -> list[str]:
    """What is wrong with the paths of a section `data`."""
    Path("run.yaml").write_text(json.dumps({"model": "demo:tiny", "method": "sft", "data": data}))
    return path_faults(load_config("run.yaml"), Places(Place("run.yaml")))


HERE = (
    "a.jsonl",
    "deep",
    "*.jsonl",
    "~/a.jsonl",
    "pipe",
    "registry.json#x",
    "axolotl.yml",
    "axolotl.yml#a,b",
)
ELSEWHERE = (
    "-",
    "hf:org/name",
    "org/name",
    "org/name@main",
    "s3://bucket/*.jsonl",
    "https://example.org/a.csv",
)


@pytest.mark.parametrize(
    "path",
    [
        "a.jsonl",
        "deep",
        "*.jsonl",
        "~/a.jsonl",
        "pipe",
        "registry.json#x",
        "axolotl.yml",
        "axolotl.yml#a,b",
        *ELSEWHERE,
    ],
)
def test_what_may_be_there(folder: Path, path: str) -> None:
    assert faults(path) == [] == faults({"sets": [path]}) == faults({"path": "a.jsonl", "eval_path": path})


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("b.jsonl", "b.jsonl does not exist; did you mean a.jsonl?"),
        ("sheet.xlsx", "sheet.xlsx is none of .jsonl, "),
        ("bare", "bare is a folder without .jsonl, "),
        ("*.parquet", "the pattern *.parquet matches nothing"),
        ("other.json#x", "other.json does not exist"),
        ("bare/name", "bare/name does not exist"),
        ("org/a.jsonl", "org/a.jsonl does not exist; nor does its folder org"),
    ],
)
def test_what_is_not_there(folder: Path, path: str, reason: str) -> None:
    assert f"data.path: {reason}" in "\n".join(faults(path))
    assert f"data.sets[0].path: {reason}" in "\n".join(faults({"sets": [{"path": path}]}))
    assert f"data.eval_path: {reason}" in "\n".join(faults({"path": "a.jsonl", "eval_path": path}))


def test_names_of_data_files() -> None:
    assert all(map(is_data_name, ("a.JSONL", "a.csv.gz", "a.txt.zst", "a.parquet", "a.arrow")))
    assert not any(map(is_data_name, ("a.parquet.gz", "a.md", "jsonl", "a.gz")))


def test_absolute_names_mean_the_same_from_everywhere(folder: Path) -> None:
    for path in ("a.jsonl", "deep", "~/a.jsonl", "*.jsonl", "registry.json#x,y"):
        absolute = absolute_data(path)
        assert absolute == str(folder / path.removeprefix("~/")) == absolute_data(absolute)
    for path in (*ELSEWHERE, "missing.jsonl"):
        assert absolute_data(path) == path


def test_a_set_without_a_path_is_refused_before(folder: Path) -> None:
    with pytest.raises(LuthierError):
        faults({"sets": [{"weight": 2}]})


def test_a_run_is_written_down_with_absolute_paths(folder: Path) -> None:
    from luthier.training.resume import with_absolute_paths

    data = {
        "sets": [{"path": "a.jsonl", "rows": 3}, "org/name", "deep/**/*.csv"],
        "eval_path": ["a.jsonl", "-"],
    }
    Path("run.yaml").write_text(json.dumps({"model": "demo:tiny", "method": "sft", "data": data}))
    written = with_absolute_paths(load_config("run.yaml")).data
    assert [one.path for one in written.sets] == [
        str(folder / "a.jsonl"),
        "org/name",
        str(folder / "deep/**/*.csv"),
    ]
    assert written.sets[0].rows == 3 and written.eval_path == [str(folder / "a.jsonl"), "-"]


@pytest.mark.parametrize("key", ["model", "teacher", "reference"])
def test_a_folder_of_a_model_that_is_not_there_is_told(folder: Path, key: str) -> None:
    named = {"model": "demo:tiny", "data": "a.jsonl", "method": "dpo", key: "./missing"}
    Path("run.yaml").write_text(json.dumps(named))
    (fault,) = path_faults(load_config("run.yaml"), Places(Place("run.yaml")))
    assert f"{key}.name" in fault and "missing" in fault
