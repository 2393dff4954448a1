"""Order, completeness and resuming: from every position, in every kind of file and in every mix."""

import gzip
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.config.data_section import SetSection
from luthier.data.sources import Row, Source, open_source
from luthier.errors import DataError

KINDS = (
    "jsonl",
    "jsonl.gz",
    "jsonl.zst",
    "json",
    "inside.json",
    "lines.json",
    "csv",
    "txt",
    "parquet",
    "arrow",
    "stream.arrow",
)
texts = st.text(st.sampled_from('aé€😀 ",\n'), min_size=1, max_size=8).filter(str.strip)


def write_kind(path: Path, kind: str, values: list[str]) -> Path:
    """A file of a kind with the values as its column `text`."""
    records = [{"text": value} for value in values]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    table = pyarrow.Table.from_pylist(records)
    file = path.with_name(f"{path.name}.{kind}")
    if kind == "parquet":
        pyarrow.parquet.write_table(table, file, row_group_size=3)
    elif kind == "arrow":
        pyarrow.feather.write_feather(table, str(file), chunksize=3)
    elif kind == "stream.arrow":
        with pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=3)
    else:
        content = {
            "jsonl.gz": lambda: gzip.compress(text),
            "jsonl.zst": lambda: pyarrow.compress(text, "zstd", asbytes=True),
            "json": lambda: json.dumps(records, ensure_ascii=False, indent=1).encode(),
            "inside.json": lambda: json.dumps({"n": {}, "rows": records, "z": [1][0]}).encode(),
            "lines.json": lambda: text + b'{"text": "last"}\n',
            "csv": lambda: (
                b"text\r\n" + "".join(f'"{v.replace(chr(34), chr(34) * 2)}"\r\n' for v in values).encode()
            ),
            "txt": lambda: "".join(value.replace("\n", " ") + "\n" for value in values).encode(),
        }.get(kind, lambda: text)()
        file.write_bytes(content)
    return file


def taken(source: Source, epoch: int = 0, start: Any = None) -> list[tuple[Row, Any]]:
    return list(source.rows(epoch, start))


def assert_every_position_resumes(source: Source, epoch: int) -> list[Row]:
    """Law: the rows behind a position are those that come when reading starts there."""
    every = taken(source, epoch)
    rows = [row for row, _ in every]
    for number, (_, position) in enumerate(every):
        kept = json.loads(json.dumps(position))
        assert [row for row, _ in source.rows(epoch, kept)] == rows[number + 1 :]
    assert [row.number for row in rows] == list(range(len(rows)))
    return rows


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(KINDS), st.lists(texts, min_size=1, max_size=9))
def test_every_position_of_a_file_resumes(
    tmp_path_factory: pytest.TempPathFactory, kind: str, values: list[str]
) -> None:
    file = write_kind(tmp_path_factory.mktemp("one") / "a", kind, values)
    rows = assert_every_position_resumes(open_source([SetSection(path=str(file))]), 0)
    expected = [value.replace("\n", " ") if kind == "txt" else value for value in values]
    expected += ["last"] if kind == "lines.json" else []
    assert [row.record and row.record["text"] for row in rows] == expected


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_every_position_of_a_mix_resumes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    sets = []
    for index in range(data.draw(st.integers(1, 3), label="sets")):
        place = folder / str(index)
        place.mkdir()
        for number in range(data.draw(st.integers(1, 2), label="files")):
            count = data.draw(st.integers(1, 5), label="rows in the file")
            kind = data.draw(st.sampled_from(KINDS), label="kind")
            write_kind(place / str(number), kind, [f"{index} {number} {row}" for row in range(count)])
        sets.append(
            SetSection(
                path=str(place),
                rows=data.draw(st.none() | st.integers(1, 6), label="rows"),
                repeat=data.draw(st.sampled_from([0.4, 1.0, 1.5, 2.0]), label="repeat"),
                weight=data.draw(st.sampled_from([0.5, 1.0, 3.0]), label="weight"),
                split=data.draw(
                    st.sampled_from([None, "train[1:]", "train[:80%]", "train[-3:]"]), label="split"
                ),
            )
        )
    mix = data.draw(st.sampled_from(["concat", "first_exhausted", "all_exhausted"]), label="mix")
    source = open_source(sets, mix=mix, temperature=2.0, seed=data.draw(st.integers(0, 9), label="seed"))
    epoch = data.draw(st.integers(0, 2), label="epoch")
    try:
        assert_every_position_resumes(source, epoch)
    except DataError as fault:
        assert "the split's part" in str(fault)


def make_sets(folder: Path, sizes: list[int]) -> list[str]:
    """JSON lines files of so many rows each, told apart by `set`."""
    paths = []
    for index, size in enumerate(sizes):
        file = folder / f"{index}.jsonl"
        file.write_text("".join(json.dumps({"set": index, "row": row}) + "\n" for row in range(size)))
        paths.append(str(file))
    return paths


def counts(rows: list[tuple[Row, Any]]) -> Counter[tuple[int, int]]:
    return Counter((row.record["set"], row.record["row"]) for row, _ in rows if row.record)


def test_concat_gives_every_row_once_in_order(tmp_path: Path) -> None:
    paths = make_sets(tmp_path, [5, 1, 7])
    source = open_source([SetSection(path=str(tmp_path / "[02].jsonl")), SetSection(path=paths[1])])
    for epoch in range(2):
        rows = [row for row, _ in source.rows(epoch)]
        assert [(row.file, row.line, row.set) for row in rows] == [
            *((paths[0], line, 0) for line in range(1, 6)),
            *((paths[2], line, 0) for line in range(1, 8)),
            (paths[1], 1, 1),
        ]
    assert source.files == [paths[0], paths[2], paths[1]]
    assert source.size == sum(Path(path).stat().st_size for path in paths)


@pytest.mark.parametrize("repeat", [0.3, 0.5, 1.0, 1.25, 3.0])
def test_repeats_add_up_over_epochs(tmp_path: Path, repeat: float) -> None:
    """Law: after n epochs each row has come n x repeat times, rounded up or down; each epoch about its share."""
    size = 1000
    source = open_source([SetSection(path=make_sets(tmp_path, [size])[0], repeat=repeat)], seed=3)
    total: Counter[tuple[int, int]] = Counter()
    for epoch in range(4):
        of_epoch = counts(taken(source, epoch))
        assert abs(of_epoch.total() - size * repeat) <= 40
        total += of_epoch
        due = (epoch + 1) * repeat
        assert all(int(due) <= total[0, row] <= int(due) + 1 for row in range(size))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 45), st.integers(0, 5), st.booleans())
def test_a_sample_has_exactly_so_many_rows(
    tmp_path_factory: pytest.TempPathFactory, size: int, rows: int, seed: int, part: bool
) -> None:
    folder = tmp_path_factory.mktemp("sample")
    one = SetSection(path=make_sets(folder, [size])[0], rows=rows, split="train[:50%]" if part else None)
    available = round(size / 2) if part else size
    if available == 0:
        return
    first, second = (counts(taken(open_source([one], seed=seed), epoch)) for epoch in (0, 1))
    assert first == second
    assert set(first.values()) == {1} and len(first) == min(rows, available)
    assert all(row < available for _, row in first)


def test_samples_are_fair(tmp_path: Path) -> None:
    path = make_sets(tmp_path, [20])[0]
    drawn: Counter[tuple[int, int]] = Counter()
    for seed in range(300):
        drawn += counts(taken(open_source([SetSection(path=path, rows=5)], seed=seed)))
    assert all(40 <= drawn[0, row] <= 115 for row in range(20))  # 75 on average, 4.6 standard deviations


@pytest.mark.parametrize(("temperature", "weights"), [(1.0, (1, 1, 1)), (3.0, (1, 2, 1)), (1.0, (4, 0.5, 1))])
def test_the_proportions_of_a_mix_are_those_asked_for(
    tmp_path: Path, temperature: float, weights: tuple[float, ...]
) -> None:
    sizes = [9000, 3000, 1000]
    sets = [SetSection(path=p, weight=w) for p, w in zip(make_sets(tmp_path, sizes), weights, strict=True)]
    source = open_source(sets, mix="all_exhausted", temperature=temperature, seed=1)
    drawn = Counter(row.set for row, _ in islice(source.rows(), 8000))
    raw = [(size * weight) ** (1 / temperature) for size, weight in zip(sizes, weights, strict=True)]
    for index, share in enumerate(raw):
        wanted = share / sum(raw)
        assert abs(drawn[index] / 8000 - wanted) < 4 * (wanted * (1 - wanted) / 8000) ** 0.5


def test_the_ends_of_mixes(tmp_path: Path) -> None:
    """`first_exhausted` gives no row twice and one set whole; `all_exhausted` gives every row, one set once."""
    sets = [SetSection(path=path) for path in make_sets(tmp_path, [40, 15, 5])]
    for seed in range(5):
        first = counts(taken(open_source(sets, mix="first_exhausted", temperature=4, seed=seed)))
        assert set(first.values()) == {1}
        per_set = Counter(index for index, _ in first)
        assert any(per_set[index] == size for index, size in enumerate([40, 15, 5]))
        every = counts(taken(open_source(sets, mix="all_exhausted", temperature=4, seed=seed)))
        assert len(every) == 60
        assert any({n for (i, _), n in every.items() if i == index} == {1} for index in range(3))


def test_mixes_differ_by_epoch_and_seed_alone(tmp_path: Path) -> None:
    sets = [SetSection(path=path) for path in make_sets(tmp_path, [50, 50])]

    def order(seed: int, epoch: int) -> list[int]:
        source = open_source(sets, mix="first_exhausted", seed=seed)
        return [row.set for row, _ in source.rows(epoch)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) and order(1, 0) != order(2, 0)


def test_progress_grows_from_nothing_to_all(tmp_path: Path) -> None:
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        for name in ("a", "b"):
            write_kind(folder / name, kind, [f"{name} {row}" for row in range(200)])
        for mix, repeat, split in (
            ("concat", 1.0, None),
            ("concat", 2.0, "train[:50%]"),
            ("all_exhausted", 1.0, None),
        ):
            source = open_source([SetSection(path=str(folder), repeat=repeat, split=split)], mix=mix)
            every = taken(source)
            shares = [source.progress(position) or 0 for _, position in every]
            assert shares == sorted(shares)
            for number in range(0, len(shares), 37):
                assert abs(shares[number] - (number + 1) / len(every)) < 0.1, (kind, mix, number)


def test_positions_of_other_data_are_refused(tmp_path: Path) -> None:
    paths = make_sets(tmp_path, [3, 3])
    source = open_source([SetSection(path=path) for path in paths])
    with pytest.raises(DataError, match="belongs to other data"):
        taken(source, 0, [1, 5, 0, 0, 0, 0, 0, 0, 0])
    position = taken(source)[-1][1]
    Path(paths[1]).write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"1\.jsonl is shorter than it was: reading is to go on at byte"):
        taken(source, 0, position)
