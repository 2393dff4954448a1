"""From names to files: folders, patterns, links, splits, URLs, streams, and what is not there."""

import json
import os
import threading
from pathlib import Path

import pytest

from luthier.config.data_section import SetSection
from luthier.data.sources import Source, list_files, open_source
from luthier.errors import DataError


def put(folder: Path, *names: str) -> None:
    """Files with one row each, which says their name."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        text = f"{name}\n" if name.endswith(".txt") else json.dumps({"text": name}) + "\n"
        file.write_text(f"[{text}]" if name.endswith(".json") else text)


def found(path: object, **options: object) -> Source:
    return open_source([SetSection.model_validate({"path": str(path), **options})])


def names(source: Source, folder: Path) -> list[str]:
    return [Path(file).relative_to(folder).as_posix() for file in source.files]


def test_folders_are_read_in_order(tmp_path: Path) -> None:
    put(
        tmp_path,
        "b.jsonl",
        "sub/c.json",
        ".hidden.jsonl",
        ".git/d.jsonl",
        "notes.txt",
        "README.md",
        "LICENSE",
    )
    put(tmp_path, "dataset_info.json", "sheet.xlsx", "sub/d.jsonl")
    source = found(tmp_path)
    assert names(source, tmp_path) == ["b.jsonl", "sub/c.json", "sub/d.jsonl"]
    assert [row.record for row, _ in source.rows()] == [{"text": name} for name in names(source, tmp_path)]
    assert len(source.notes) == 1 and source.notes[0].endswith("stand next to some: notes.txt, sheet.xlsx")
    assert [file.name for file in list_files([tmp_path])] == ["b.jsonl", "c.json", "d.jsonl"]


def test_a_folder_of_texts(tmp_path: Path) -> None:
    put(tmp_path, "b.txt", "a.txt", "readme.txt")
    assert names(found(tmp_path), tmp_path) == ["a.txt", "b.txt"]


def test_refused_rows_beside_converted_ones_are_left_out_with_a_note(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "a.refused.jsonl")
    source = found(tmp_path)
    assert names(source, tmp_path) == ["a.jsonl"]
    assert any("not read" in note and "a.refused.jsonl" in note for note in source.notes)


def test_a_saved_table_of_the_datasets_library(tmp_path: Path) -> None:
    put(tmp_path, "data-00000-of-00001.arrow", "state.json", "dataset_info.json", "cache-0123.arrow")
    assert names(found(tmp_path), tmp_path) == ["data-00000-of-00001.arrow"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "sub/c.jsonl"]),
        ("[ab].*", ["a.jsonl", "b.jsonl"]),
        ("s?b/*", ["sub/c.jsonl"]),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    put(tmp_path, "b.jsonl", "a.jsonl", "a.bin", "sub/c.jsonl")
    assert names(found(tmp_path / pattern), tmp_path) == expected


@pytest.mark.parametrize("pattern", ["*.jsonl", "."])
def test_test_files_that_are_read_with_others_are_told(tmp_path: Path, pattern: str) -> None:
    put(tmp_path, "a.jsonl", "test.jsonl")
    source = found(tmp_path / pattern)
    assert names(source, tmp_path) == ["a.jsonl", "test.jsonl"]
    assert any(
        "names speak of test or validation and are read with the others: test.jsonl" in one
        for one in source.notes
    )
    (tmp_path / "test.jsonl").unlink()
    assert found(tmp_path / pattern).notes == ()


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    put(tmp_path, "a[1].jsonl")
    assert names(found(tmp_path / "a[1].jsonl"), tmp_path) == ["a[1].jsonl"]


def test_links_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    put(tmp_path, "data/a.jsonl", "elsewhere/b.jsonl")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    assert names(found(tmp_path / "data"), tmp_path / "data") == ["a.jsonl", "link/b.jsonl"]
    (tmp_path / "data" / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"gone\.jsonl is a link to .*nowhere, which does not exist"):
        found(tmp_path / "data")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    with pytest.raises(DataError, match=r"loop\.jsonl is a link to .*, which leads back to itself"):
        found(tmp_path / "loop.jsonl")


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "train.jsonl", "empty/README.md", "sub/x.bin")
    monkeypatch.chdir(tmp_path)
    for path, reason in {
        "trian.jsonl": r"trian\.jsonl does not exist; did you mean train\.jsonl\?",
        "no/where/a.jsonl": r"does not exist, and neither does its folder no/where",
        "empty": r"the folder empty has no data files \(.*\); it holds README\.md",
        "*.csv": r"the pattern \*\.csv matches nothing",
        "nowhere/*.csv": r"matches nothing; the folder nowhere does not exist",
        "sub/*": r"the pattern sub/\* matches no data files .*: x\.bin",
        "e*": "the pattern e\\* matches only folders: empty",
        "a\0b": "cannot be read",
        "sub/x.bin": "of an unknown kind",
    }.items():
        with pytest.raises(DataError, match=reason):
            found(path)
    with pytest.raises(DataError, match="only hub sets have a `subset`"):
        found("train.jsonl", subset="main")


def test_the_user_s_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, "a.jsonl")
    assert found("~/a.jsonl").files == found("~/*.jsonl").files == [str(tmp_path / "a.jsonl")]


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["train/a.jsonl", "validation/a.jsonl"], "validation", ["validation/a.jsonl"]),
        (["my-train-set.jsonl", "my_dev.jsonl"], "val", ["my_dev.jsonl"]),
        (["a.jsonl", "b.jsonl"], "train", ["a.jsonl", "b.jsonl"]),
        (["x_sft-00000-of-00002.jsonl", "x_sft-00001-of-00002.jsonl"], "x_sft", "all"),
        (["train_sft.jsonl", "train_gen.jsonl"], "train_gen", ["train_gen.jsonl"]),
        (["train.jsonl", "test.jsonl", "more.jsonl"], None, ["more.jsonl", "train.jsonl"]),
        (["test.jsonl", "more.jsonl"], None, ["more.jsonl", "test.jsonl"]),
        (["contest.jsonl", "trainer.jsonl"], None, ["contest.jsonl", "trainer.jsonl"]),
    ],
)
def test_splits_by_name(tmp_path: Path, files: list[str], split: str | None, expected: object) -> None:
    put(tmp_path, *files)
    source = found(tmp_path, split=split)
    assert names(source, tmp_path) == (files if expected == "all" else expected)
    assert len(source.notes) == (split is None and bool({"train.jsonl", "test.jsonl"} & {*files}))


def test_a_file_named_alone_is_what_is_meant(tmp_path: Path) -> None:
    put(tmp_path, "test.jsonl")
    assert len(list(found(tmp_path / "test.jsonl", split="train[:1]").rows())) == 1
    with pytest.raises(DataError, match="has no split `validation`; there are test"):
        found(tmp_path / "test.jsonl", split="validation")


def test_unknown_splits(tmp_path: Path) -> None:
    put(tmp_path, "train.jsonl", "test.jsonl", "other/a.jsonl")
    for path, split, reason in (
        (tmp_path, "validation", "has no split `validation`; there are test, train"),
        (tmp_path / "other", "test", "no file's name speaks of a split, so all are `train`"),
        (tmp_path, "train+test", r"split `train\+test` is not written like .*; give each split as a set"),
        (tmp_path, "train[:x]", "is not written like train, train"),
    ):
        with pytest.raises(DataError, match=reason):
            found(path, split=split)
    with pytest.raises(DataError, match=r"train\.jsonl: the split's part begins at row 5, but there are 1"):
        list(found(tmp_path / "train.jsonl", split="train[5:]").rows())


def test_weights_without_a_mix_are_said_to_do_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl")
    one = SetSection(path=str(tmp_path / "a.jsonl"), weight=2)
    assert "the weights of the sets have no effect" in open_source([one]).notes[0]
    assert open_source([one], mix="first_exhausted").notes == ()


def test_a_named_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    lines = [json.dumps({"n": number}) + "\n" for number in range(50)]
    writer = threading.Thread(target=lambda: pipe.write_text("".join(lines)))
    writer.start()
    source = found(pipe)
    assert source.is_stream and source.size is None
    rows = source.rows()
    positions = [next(rows)[1] for _ in range(20)]
    rows.close()
    rest = [row.record for row, _ in source.rows(0, positions[-1])]  # where the stream stands: that works
    assert rest == [{"n": number} for number in range(20, 50)]
    writer.join()
    with pytest.raises(DataError, match="is a stream, so reading cannot go on at byte"):
        list(source.rows(0, positions[3]))
    with pytest.raises(DataError, match="is a stream and was read already"):
        list(source.rows(1))
    with pytest.raises(DataError, match="is a stream, so how many rows it has is not known"):
        list(open_source([SetSection(path=str(pipe))], mix="all_exhausted").rows())


def test_some_rows_of_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text('{"n": 1}\n{"n": 2}\n{"n": 3}\n'))
    writer.start()
    assert [row.record for row, _ in found(pipe, rows=2).rows()] == [{"n": 1}, {"n": 2}]
    writer.join()


def test_files_behind_a_url(tmp_path: Path) -> None:
    """The memory filesystem of fsspec stands for S3 and the others: the same calls, no network."""
    fsspec = pytest.importorskip("fsspec")
    put(tmp_path, "train/a.jsonl", "train/b.json", "test/c.jsonl", "train/note.md")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/bucket", recursive=True)
    try:
        base = "memory://bucket"
        assert found(f"{base}/train/a.jsonl").files == [f"{base}/train/a.jsonl"]
        assert [Path(name).name for name in found(base).files] == ["c.jsonl", "a.jsonl", "b.json"]
        assert [Path(name).name for name in found(base, split="train").files] == ["a.jsonl", "b.json"]
        source = found(f"{base}/*/*.jsonl")
        every = list(source.rows())
        assert [row.record for row, _ in every] == [{"text": "test/c.jsonl"}, {"text": "train/a.jsonl"}]
        assert [row for row, _ in source.rows(0, every[0][1])] == [every[1][0]]
        assert source.size == 2 * len('{"text": "test/c.jsonl"}\n') + 1 and not source.is_local
        stamps = [file.stamp() for file in source.data_files]
        memory.pipe_file("/bucket/test/c.jsonl", b'{"text": "other"}\n')
        assert source.data_files[0].stamp() != stamps[0]
        with pytest.raises(DataError, match="does not exist, or names no files"):
            found(f"{base}/nowhere")
    finally:
        memory.rm("/bucket", recursive=True)


def test_urls_that_cannot_be_read() -> None:
    with pytest.raises(DataError, match=r"nosuch://a/b cannot be read: .*nosuch"):
        found("nosuch://a/b")
