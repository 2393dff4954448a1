"""The ledger adds up, survives being written, and stops a run that loses too much."""

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.ledger import MAX_EXAMPLES, MAX_REASONS, OTHERS, Ledger
from luthier.errors import DataError

STATUSES: tuple[Literal["kept", "truncated", "dropped"], ...] = ("kept", "truncated", "dropped")
ENTRIES = st.lists(st.tuples(st.sampled_from(STATUSES), st.text(min_size=1)))


@given(ENTRIES)
def test_kept_and_truncated_and_dropped_are_read(entries: list[tuple[Literal["kept"], str]]) -> None:
    ledger = Ledger()
    for number, (status, reason) in enumerate(entries):
        ledger.add(status, f"a.jsonl:{number}", None if status == "kept" else reason)
    assert ledger.kept + ledger.truncated + ledger.dropped == ledger.read == len(entries)
    assert ledger.reasons.total() == ledger.dropped
    assert all(1 <= len(seen) <= MAX_EXAMPLES for seen in ledger.examples.values())
    assert set(ledger.examples) == set(ledger.reasons)
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))) == ledger
    assert ledger.summary().startswith(f"{len(entries)} rows: ")


def filled(entries: list[tuple[Literal["kept"], str, bool]]) -> Ledger:
    ledger = Ledger()
    for number, (status, reason, on_purpose) in enumerate(entries):
        aside = on_purpose and status == "dropped"
        ledger.add(status, f"a.jsonl:{number}", None if status == "kept" else reason, set_aside=aside)
    return ledger


MARKED = st.lists(st.tuples(st.sampled_from(STATUSES), st.sampled_from("abc"), st.booleans()))


@given(MARKED, st.integers(0, 12))
def test_two_parts_are_the_account_of_the_whole(entries: list[Any], at: int) -> None:
    whole, first = filled(entries), filled(entries[:at])
    second = Ledger()
    for number, (status, reason, on_purpose) in list(enumerate(entries))[at:]:
        aside = on_purpose and status == "dropped"
        second.add(status, f"a.jsonl:{number}", None if status == "kept" else reason, set_aside=aside)
    first.include(second)
    assert first == whole
    assert Ledger.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_rows_left_out_on_purpose_stop_no_run() -> None:
    ledger = Ledger()
    ledger.add("kept", "a:1")
    for number in range(9):
        ledger.add("dropped", f"a:{number + 2}", "the row says the same as a:1", set_aside=True)
    ledger.check(0.0)
    assert (ledger.read, ledger.dropped, ledger.faults) == (10, 9, 0)
    assert (
        ledger.summary().splitlines()[0] == "10 rows: 1 kept, 0 truncated, 9 dropped (9 of them on purpose)"
    )
    ledger.add("dropped", "a:11", "bad")
    with pytest.raises(DataError, match=r"1 of 11 rows \(9\.1%\) cannot be used"):
        ledger.check(0.05)


def test_reasons_without_end_are_bounded_and_still_add_up() -> None:
    ledger = Ledger()
    for number in range(MAX_REASONS + 50):
        ledger.add("dropped", "a:1", "x" + "abcdefghij"[number % 10] * (number // 10 + 1))
    assert ledger.reasons.total() == ledger.dropped == MAX_REASONS + 50
    assert len(ledger.reasons) == MAX_REASONS + 1 and ledger.reasons[OTHERS] == 50


def test_reasons_that_differ_in_numbers_and_quotes_are_one() -> None:
    ledger = Ledger()
    for number in range(7):
        ledger.add("dropped", f"a:{number}", f"message {number} has the unknown role 'r{number}'; it's wrong")
    assert dict(ledger.reasons) == {"message # has the unknown role '…'; it's wrong": 7}
    assert ledger.examples["message # has the unknown role '…'; it's wrong"][0] == (
        "a:0",
        "message 0 has the unknown role 'r0'; it's wrong",
    )


def test_summary_names_the_reasons_with_an_example() -> None:
    ledger = Ledger()
    ledger.add("kept", "a:1")
    ledger.add("dropped", "a:2", "the row has no `messages`")
    for number in range(3, 5):
        ledger.add("dropped", f"a:{number}", f"message {number} is bad")
    assert ledger.summary().splitlines() == [
        "4 rows: 1 kept, 0 truncated, 3 dropped",
        "  2 x message # is bad (first a:3: message 3 is bad)",
        "  1 x the row has no `messages` (a:2)",
    ]


def test_more_reasons_than_are_shown_are_counted() -> None:
    ledger = Ledger()
    for letter in "abcdefgh":
        ledger.add("dropped", "a:1", letter)
    assert ledger.summary().splitlines()[-1] == "  and 3 other reasons"


def test_too_many_dropped_rows_stop_the_run() -> None:
    ledger = Ledger()
    for number in range(98):
        ledger.add("kept", f"a:{number}")
    ledger.add("truncated", "a:98", "cut")
    ledger.add("dropped", "a:99", "bad")
    ledger.check(0.01)
    ledger.add("dropped", "a:100", "bad")
    with pytest.raises(DataError) as caught:
        ledger.check(0.01)
    assert str(caught.value).splitlines() == [
        "2 of 101 rows (2.0%) cannot be used; data.max_drop_fraction allows 1.0%.",
        "  2 x bad (first a:99: bad)",
        "Correct these rows, or raise data.max_drop_fraction to go on without them",
    ]
    ledger.check(1.0)


def test_no_row_left_stops_the_run_whatever_is_allowed() -> None:
    ledger = Ledger()
    ledger.add("dropped", "a:1", "all targets masked: no token of this row is to be learned")
    with pytest.raises(
        DataError, match=r"none of the 1 rows can be used(.|\n)*all targets masked(.|\n)*data\.path"
    ):
        ledger.check(1.0)


def test_a_ledger_that_does_not_add_up_is_not_read() -> None:
    ledger = Ledger()
    ledger.add("dropped", "a:1", "bad")
    for change in ({"read": 5}, {"reasons": {}}):
        with pytest.raises(AssertionError):
            Ledger.from_json(ledger.to_json() | change)
