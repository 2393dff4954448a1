"""Hub sets from a cache laid out as `huggingface_hub` does it; nothing here asks the network."""

import json
from pathlib import Path

import pytest

from luthier.config.data_section import SetSection
from luthier.data.sources import Source, hub, open_source
from luthier.data.sources.splits import check_shards, files_of_card, glob_pattern, split_of
from luthier.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the data set org/name in an empty cache of the hub; the network is not used."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "datasets--org--name"


def fill(cache: Path, *names: str, card: str = "") -> None:
    """Puts files into the cache as a download would: blobs, links to them from the snapshot, and a ref."""
    (cache / "refs").mkdir(parents=True, exist_ok=True)
    (cache / "refs" / "main").write_text(COMMIT)
    (cache / "blobs").mkdir(exist_ok=True)
    for number, name in enumerate((*names, "README.md") if card else names):
        file = cache / "snapshots" / COMMIT / name
        file.parent.mkdir(parents=True, exist_ok=True)
        blob = cache / "blobs" / f"blob{number}"
        blob.write_text(card if name == "README.md" else json.dumps({"text": name}) + "\n")
        file.symlink_to(blob)


def found(path: str, **options: object) -> Source:
    return open_source([SetSection.model_validate({"path": path, **options})])


def texts(source: Source) -> list[str]:
    return [row.record["text"] for row, _ in source.rows() if row.record]


@pytest.mark.parametrize("name", ["hf:org/name", "org/name", "hf://datasets/org/name", "hf:org/name@main"])
def test_a_cached_set_is_read_without_the_network(cache: Path, name: str) -> None:
    fill(cache, "data/train.jsonl", "data/test.jsonl", ".gitattributes")
    source = found(name)
    assert texts(source) == ["data/train.jsonl"] and source.is_local
    assert not hub.HubFile("org/name", "data/other.jsonl", COMMIT, None, True).is_here
    assert source.files == ["hf:org/name/data/train.jsonl"]
    assert source.data_files[0].stamp() == COMMIT
    assert texts(found(name, split="test")) == ["data/test.jsonl"]


def test_a_local_folder_goes_before_the_hub(cache: Path) -> None:
    fill(cache, "train.jsonl")
    Path("org/name").mkdir(parents=True)
    Path("org/name/own.jsonl").write_text('{"text": "own"}\n')
    assert texts(found("org/name")) == ["own"]
    assert texts(found("hf:org/name")) == ["train.jsonl"]


def test_files_of_a_set_by_name(cache: Path) -> None:
    fill(cache, "raw/a.jsonl", "raw/b.jsonl", "test/c.jsonl")
    assert texts(found("hf:org/name/raw/b.jsonl")) == ["raw/b.jsonl"]
    assert texts(found("hf:org/name/raw")) == ["raw/a.jsonl", "raw/b.jsonl"]
    assert texts(found("hf:org/name/*/[ac].jsonl")) == ["raw/a.jsonl", "test/c.jsonl"]
    with pytest.raises(DataError, match="hf:org/name/x names no data file of the set; it holds raw/a"):
        found("hf:org/name/x")


CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - {split: train, path: [main/tr*.jsonl, extra/**/*.jsonl]}
  - {split: gold, path: main/gold.jsonl}
- config_name: socratic
  data_dir: socratic
---
# A data set
"""


def test_subsets_and_splits_of_the_card(cache: Path) -> None:
    files = (
        "main/train-1.jsonl",
        "main/gold.jsonl",
        "extra/a/b.jsonl",
        "socratic/train.jsonl",
        "socratic/test.jsonl",
    )
    fill(cache, *files, card=CARD)
    assert texts(found("org/name", subset="main")) == ["extra/a/b.jsonl", "main/train-1.jsonl"]
    assert texts(found("org/name", subset="main", split="gold")) == ["main/gold.jsonl"]
    assert texts(found("org/name", subset="socratic", split="test")) == ["socratic/test.jsonl"]
    for options, reason in (
        ({}, "has several subsets; choose one with `subset`: main, socratic"),
        ({"subset": "mian"}, "has no subset `mian`; it has main, socratic"),
        ({"subset": "main", "split": "test"}, "has no split `test`; there are train, gold"),
    ):
        with pytest.raises(DataError, match=reason):
            found("org/name", **options)


def test_subsets_by_folder_where_there_is_no_card(cache: Path) -> None:
    fill(cache, "en/train.jsonl", "fr/train.jsonl", "fr/test.jsonl")
    assert texts(found("org/name", subset="fr")) == ["fr/train.jsonl"]
    with pytest.raises(
        DataError, match=r"no subset `de`: neither its card nor a folder .* folders are en, fr"
    ):
        found("org/name", subset="de")


def test_what_is_not_in_the_cache_is_named(cache: Path) -> None:
    advice = "fetch it with `hf download --repo-type dataset org/name`"
    with pytest.raises(DataError, match=rf"hf:org/name is not in the cache, .*not to be used; {advice}"):
        found("org/name")
    fill(cache, "train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl")
    with pytest.raises(DataError, match=rf"train-00001-of-00003\.jsonl is missing; {advice}"):
        found("org/name")
    with pytest.raises(DataError, match="hf:org is not written like hf:org/name"):
        found("hf:org")


def test_a_listing_of_the_hub_shows_what_was_not_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cache, "train/a.jsonl")
    monkeypatch.setattr(
        hub, "_known_tree", lambda repo, commit: ["train/a.jsonl", "train/b.jsonl", "test/c.jsonl"]
    )
    with pytest.raises(DataError, match=r"hf:org/name: train/b\.jsonl is not in the cache"):
        found("org/name")


def test_the_cache_is_used_where_the_hub_cannot_be_reached(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi, constants

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    fill(cache, "train.jsonl")
    source = found("org/name")
    assert texts(source) == ["train.jsonl"]
    assert source.notes == ("hf:org/name: the hub cannot be reached, so the files in the cache are used",)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002-abc.parquet", "train"),
        ("train_prefs-00000-of-00001.parquet", "train_prefs"),
        ("validation/0.json", "validation"),
        ("x.dev.csv", "validation"),
        ("eval_2.jsonl", "test"),
        ("test/train.jsonl", "train"),
        ("latest.jsonl", None),
        ("training-v2/a.jsonl", "train"),
    ],
)
def test_splits_in_names(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("pattern", "matches", "does_not"),
    [
        ("data/*.jsonl", "data/a.jsonl", "data/x/a.jsonl"),
        ("**/*.jsonl", "a.jsonl", "a.json"),
        ("data/**", "data/x/y", "other/x"),
        ("part-[0-9]?.json", "part-12.json", "part-x2.json"),
        ("a[!b].json", "ac.json", "ab.json"),
    ],
)
def test_patterns_of_cards(pattern: str, matches: str, does_not: str) -> None:
    import re

    assert re.fullmatch(glob_pattern(pattern), matches)
    assert not re.fullmatch(glob_pattern(pattern), does_not)


def test_cards_without_files() -> None:
    for card in ("", "# title", "---\nlicense: mit\n---\n", "---\n: [\n---\n", "---\nconfigs: 3\n---\n"):
        assert files_of_card(card, ["a.jsonl"], None, "train", "x") is None
    for given in ("'*.jsonl'", "['*.jsonl']", "{train: '*.jsonl'}", "[{split: train, path: '*.jsonl'}]"):
        card = f"---\nconfigs:\n- config_name: c\n  data_files: {given}\n---\n"
        assert files_of_card(card, ["a.jsonl", "b.txt"], None, "train", "x") == ["a.jsonl"]


def test_whole_series_of_shards_are_accepted() -> None:
    check_shards(
        [f"{part}-{n:05d}-of-00002.parquet" for part in "ab" for n in range(2)] + ["c.jsonl"], "x", "y"
    )
