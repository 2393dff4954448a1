"""Rows in windows: each once an epoch, exact from any step, nothing read twice, the same on all ranks."""

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.config.data_section import CleanSection, SetSection
from luthier.data import cache
from luthier.data.holdout import content_hash
from luthier.data.loader import StepSource
from luthier.data.pipeline import HeldOut
from luthier.data.prepare import prepare_plan
from luthier.data.windows import Place, WindowMaker, open_window
from luthier.errors import DataError
from stream_parts import rows_in, steps_of, token_plan, token_stream, write_tokens

FIXTURES = [HealthCheck.function_scoped_fixture]


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@settings(suppress_health_check=FIXTURES, max_examples=8)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 3), st.booleans())
def test_every_row_comes_once_an_epoch(
    tmp_path: Path, num_rows: int, window: int, epochs: int, keep: bool
) -> None:
    plan = token_plan(write_tokens(tmp_path / "a.jsonl", num_rows))
    source = token_stream(plan, fresh(tmp_path / "w"), window_rows=window, epochs=epochs, keep=keep)
    rows = rows_in(steps_of(source, total=source.total_steps(epochs, None)))
    for epoch in range(epochs):
        assert sorted(rows[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
    assert source.ledger.read == source.ledger.kept == num_rows
    windows = list((tmp_path / "w").glob("*/*"))
    assert len(windows) == -(-num_rows // window) if keep else len(windows) <= 2
    source.close()
    assert keep or list((tmp_path / "w").glob("*")) == []


@settings(suppress_health_check=FIXTURES, max_examples=6)
@given(st.integers(5, 40), st.integers(1, 9), st.data(), st.booleans(), st.booleans())
def test_from_any_step_on_it_goes_on_as_if_never_stopped(
    tmp_path: Path, num_rows: int, window: int, data: st.DataObject, clean: bool, keep: bool
) -> None:
    files = [write_tokens(tmp_path / f"{i}.jsonl", num_rows // 2, faults=[1]) for i in range(2)]
    options = CleanSection(exact_duplicates=clean)
    plan = token_plan(*files, clean=options)

    def stream() -> Any:
        return token_stream(plan, tmp_path / "w", window_rows=window, epochs=2, keep=keep)

    fresh(tmp_path / "w")
    straight, whole = stream(), None
    whole = steps_of(straight, total=straight.total_steps(2, None))
    at = data.draw(st.integers(0, len(whole)))
    first, second = stream(), stream()
    before = steps_of(first, total=1, most=at)
    state = saved(first.state())
    first.close()
    second.total_steps(2, None)  # as a run does before it knows that it goes on
    second.restore(state)
    assert before + steps_of(second, first=at, total=1) == whole
    assert second.ledger == straight.ledger and second.ledger.read == 2 * (num_rows // 2)
    assert second.notes == straight.notes
    second.close()


def test_going_on_reads_nothing_that_lies_before(tmp_path: Path) -> None:
    file = write_tokens(tmp_path / "a.jsonl", 40)
    maker = WindowMaker(token_plan(file), 15)
    maker.make(Place(), tmp_path / "w" / "0")
    first = open_window(tmp_path / "w" / "0", Place())
    assert first is not None and first.next.window == 1 and not first.ends_epoch
    maker.make(first.next, tmp_path / "w" / "1")
    content = file.read_bytes()
    start = sum(len(line) for line in content.splitlines(keepends=True)[:15])
    file.write_bytes(b"\xff" * start + content[start:])
    WindowMaker(token_plan(file), 15).make(first.next, tmp_path / "w" / "again")
    one, two = (cache.load(tmp_path / "w" / name) for name in ("1", "again"))
    assert one is not None and two is not None and one[1] == two[1]
    assert all((one[0][name] == two[0][name]).all() for name in one[0])


def test_a_second_run_and_a_second_epoch_find_the_windows(tmp_path: Path) -> None:
    plan = token_plan(write_tokens(tmp_path / "a.jsonl", 30))
    first = token_stream(plan, tmp_path / "w", epochs=2, keep=True)
    whole = steps_of(first, total=9)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "w").rglob("*")}
    assert len(list((tmp_path / "w").glob("*/*"))) == 5
    assert steps_of(token_stream(plan, tmp_path / "w", epochs=2, keep=True), total=9) == whole
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "w").rglob("*")}


@pytest.mark.parametrize("mix", ["first_exhausted", "all_exhausted"])
def test_a_mix_differs_from_epoch_to_epoch_and_goes_on_exactly(tmp_path: Path, mix: Any) -> None:
    files = [write_tokens(tmp_path / f"{i}.jsonl", 20 + 10 * i, seed=i) for i in range(2)]
    sets = tuple(SetSection(path=str(file), weight=1 + i) for i, file in enumerate(files))
    plan = token_plan(*files, mix=mix)
    plan = type(plan)(**{**vars(plan), "sets": sets})
    assert not plan.same_every_epoch
    whole = steps_of(token_stream(plan, tmp_path / "w", epochs=2), total=9)
    first = token_stream(plan, tmp_path / "w", epochs=2)
    before = steps_of(first, total=9, most=len(whole) // 2)
    again = token_stream(plan, tmp_path / "v", epochs=2)
    again.restore(saved(first.state()))
    assert before + steps_of(again, first=len(before), total=9) == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_that_work_ahead_change_nothing(tmp_path: Path, workers: int) -> None:
    plan = token_plan(write_tokens(tmp_path / "a.jsonl", 60, faults=[3, 50]))
    here = token_stream(plan, tmp_path / "w0", window_rows=20)
    ahead = token_stream(plan, tmp_path / "w1", window_rows=20, workers=workers)
    try:
        assert steps_of(ahead, total=9) == steps_of(here, total=9)
        assert ahead.ledger == here.ledger and ahead.ledger.read == 60
    finally:
        worker = ahead._windows.windows._worker  # pyright: ignore
        ahead.close()
        assert worker.process.poll() is not None  # pyright: ignore


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_each_step(tmp_path: Path, world: int) -> None:
    plan = token_plan(write_tokens(tmp_path / "a.jsonl", 50))
    alone = token_stream(plan, tmp_path / "w", keep=True)
    ranks = [token_stream(plan, tmp_path / "w", keep=True, rank=r, world=world) for r in range(world)]
    total, step = 1, -1
    for step, whole in enumerate(steps_of(alone, total=9)):
        shares = []
        for source in ranks:
            total = source.ready(total)
            shares += [row for batch in source.step(step) for row in batch.columns["row"].tolist()]
        assert sorted(shares) == sorted(rows_in([whole]))
    assert all(source.ready(total) == step + 1 for source in ranks)


def test_how_long_a_run_is_becomes_known(tmp_path: Path) -> None:
    plan = token_plan(write_tokens(tmp_path / "a.jsonl", 400))
    source = token_stream(plan, tmp_path / "w", window_rows=50, epochs=3)
    total = source.total_steps(3, None)
    known = [total]
    step = 0
    while step < (total := source.ready(total)):
        source.step(step)
        known.append(total)
        step += 1
    assert step == known[-1] and all(abs(one - step) <= 0.3 * step for one in known)
    assert source.ready(total) == step == total


def test_given_steps_repeat_the_rows_as_often_as_needed(tmp_path: Path) -> None:
    plan = token_plan(write_tokens(tmp_path / "a.jsonl", 10))
    source = token_stream(plan, tmp_path / "w", epochs=None)
    assert source.total_steps(1.0, 17) == 17 == source.ready(17)
    rows = rows_in([step for i in range(17) for step in steps_of(source, first=i, total=17, most=1)])
    assert len(rows) > 30 and sorted(rows[:10]) == sorted(rows[10:20]) == list(range(10))


def test_no_usable_row_ends_a_stream_with_the_reason(tmp_path: Path) -> None:
    file = write_tokens(tmp_path / "a.jsonl", 12, faults=range(12))
    with pytest.raises(DataError, match=r"none of the 12 rows can be used(.|\n)*not valid JSON"):
        steps_of(token_stream(token_plan(file), tmp_path / "w", window_rows=3, epochs=None), total=9)


def test_too_many_faults_end_a_stream_where_they_are_met(tmp_path: Path) -> None:
    file = write_tokens(tmp_path / "a.jsonl", 40, faults=range(20, 40))
    source = token_stream(token_plan(file), tmp_path / "w", window_rows=10, max_drop_fraction=0.1)
    with pytest.raises(DataError, match=r"10 of 30 rows \(33\.3%\) cannot be used"):
        steps_of(source, total=9)


def test_one_window_is_shuffled_and_packed_as_all_rows_at_once(tmp_path: Path) -> None:
    plan = token_plan(write_tokens(tmp_path / "a.jsonl", 30))
    dataset = prepare_plan(plan)
    source = StepSource(dataset, tokens_per_step=96, micro_tokens=32, seed=3)
    streamed = token_stream(plan, tmp_path / "w", window_rows=100)
    assert len(steps_of(streamed, total=9)) == source.steps_per_epoch
    one, two = dataset.example(4), streamed.first_window().dataset.example(4)
    assert one.segments[0].ids.tolist() == two.segments[0].ids.tolist() and one.row == two.row


def test_rows_are_found_again_for_messages(tmp_path: Path) -> None:
    file = write_tokens(tmp_path / "a.jsonl", 30)
    source = token_stream(token_plan(file), tmp_path / "w", window_rows=8)
    for step in steps_of(source, total=9):
        assert {source.locate(row) for row in rows_in([step])} != set()
    assert source.locate(29) == f"{file}:30"


def test_a_window_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("a file where the folder should be")
    source = token_stream(token_plan(write_tokens(tmp_path / "a.jsonl", 5)), tmp_path / "w")
    with pytest.raises(DataError, match=r"tokens of a window of rows cannot be written to .*; ?|Make room"):
        source.first_window()


def test_a_damaged_window_is_made_again(tmp_path: Path) -> None:
    plan = token_plan(write_tokens(tmp_path / "a.jsonl", 20))
    whole = steps_of(token_stream(plan, tmp_path / "w", keep=True), total=9)
    for file in (tmp_path / "w").rglob("ids.npy"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.unlink()  # it may be mapped
        file.write_bytes(content)
    assert steps_of(token_stream(plan, tmp_path / "w", keep=True), total=9) == whole


def test_how_long_part_of_an_epoch_is_becomes_known_too(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"  # rows of as many tokens, but first shorter and then longer in bytes
    rows = [[row % 200, *[1 if row < 60 else 199] * 15] for row in range(200)]
    file.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in rows))
    plan = token_plan(file)
    once = steps_of(token_stream(plan, tmp_path / "w", window_rows=20, epochs=1))
    num_packs = sum(map(len, once))
    source = token_stream(plan, tmp_path / "v", window_rows=20, epochs=1.5)
    guess = source.total_steps(1.5, None)
    steps = steps_of(source, total=guess)
    assert len(steps) == math.ceil(1.5 * num_packs / source.packs_per_step) < guess


def shaped(path: Path, counts: list[tuple[str, int]]) -> Path:
    """Rows of one kind after another: fine ones, copies of the first, and broken ones."""
    fine = iter(range(200))
    rows = {
        "fine": lambda: json.dumps({"input_ids": [7, 8, next(fine)]}),
        "copy": lambda: json.dumps({"input_ids": [7, 8, 9, 9]}),
        "broken": lambda: "{broken",
    }
    path.write_text("".join(rows[kind]() + "\n" for kind, count in counts for _ in range(count)))
    return path


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("keep", [True, False])
def test_windows_without_any_row_to_learn_from_are_passed_over(
    tmp_path: Path, keep: bool, workers: int
) -> None:
    seen = tmp_path / "seen.jsonl"
    file = shaped(seen, [("broken", 16), ("fine", 3), ("broken", 9), ("fine", 2), ("broken", 4)])
    source = token_stream(
        token_plan(file), tmp_path / "w", window_rows=4, epochs=2, keep=keep, workers=workers
    )
    try:
        first = source.first_window()
        assert first.place.window == 4 and len(first.dataset) == 3
        total = source.total_steps(2, None)
        rows = rows_in(steps_of(source, total=total))
        assert sorted(rows) == sorted([16, 17, 18, 28, 29] * 2)
        assert (source.ledger.read, source.ledger.kept, source.ledger.faults) == (34, 5, 29)
    finally:
        source.close()


def test_rows_set_aside_in_the_beginning_do_not_end_a_stream_but_faults_do(tmp_path: Path) -> None:
    held = HeldOut(hashes=frozenset([content_hash({"input_ids": [7, 8, 9, 9]})]))
    file = shaped(tmp_path / "a.jsonl", [("copy", 5), ("fine", 1)])
    plan = token_plan(file, held_out=held)
    source = token_stream(plan, tmp_path / "w", window_rows=1, max_drop_fraction=0.0)
    assert source.first_window().place.window == 5
    assert rows_in(steps_of(source, total=9)) == [5] and source.ledger.set_aside == 5
    file = shaped(tmp_path / "b.jsonl", [("broken", 4), ("fine", 30)])
    source = token_stream(token_plan(file), tmp_path / "v", window_rows=2, max_drop_fraction=0.3)
    with pytest.raises(DataError, match="none of the 2 rows can be used"):
        source.first_window()


@pytest.mark.parametrize("keep", [True, False])
def test_what_cleaning_remembers_is_written_once(tmp_path: Path, keep: bool) -> None:
    """Not with every window anew, which would take the square of the rows."""
    file = tmp_path / "a.jsonl"
    file.write_text(
        "".join(json.dumps({"input_ids": [1, row // 200, row % 200]}) + "\n" for row in range(4000))
    )
    plan = token_plan(file, clean=CleanSection(exact_duplicates=True))
    source = token_stream(plan, tmp_path / "w", window_rows=100, keep=keep)
    step = 0
    while step < source.ready(9999):
        source.step(step)
        step += 1
    sizes = [one.stat().st_size for one in (tmp_path / "w").rglob("cleaner.npy")]
    assert len(sizes) == 40 and max(sizes) < 2 * min(sizes)
    assert sum(sizes) < 4000 * 16 + 40 * 2000
    rows = list((tmp_path / "w").rglob("ids.npy"))
    assert len(rows) == (40 if keep else 2)


@pytest.mark.parametrize("epochs", [1, 2, 1.5])
def test_nothing_is_made_ahead_for_an_epoch_that_does_not_come(tmp_path: Path, epochs: float) -> None:
    files = [write_tokens(tmp_path / f"{i}.jsonl", 12, seed=i) for i in range(2)]
    plan = token_plan(*files, mix="all_exhausted")
    assert not plan.same_every_epoch
    source = token_stream(plan, tmp_path / "w", epochs=epochs, window_rows=8, workers=1)
    asked: list[int] = []
    windows: Any = source._windows.windows
    ask = windows._ask
    windows._ask = lambda place: (asked.append(place.epoch), ask(place))
    try:
        steps_of(source, total=source.total_steps(epochs, None))
    finally:
        source.close()
    assert max(asked) == math.ceil(epochs) - 1
