"""From made-up events to numbers: rates, warm-up, runs that were cut short, counts that do not fit."""

from typing import Any

import numpy as np
import pytest
from bench.measure import measured, median_and_spread, summary
from bench.rows import Rows
from bench.watch import Outcome
from hypothesis import given
from hypothesis import strategies as st

ROWS = Rows(np.arange(100, dtype=np.int32), np.array([[4, 6], [10, 10], [5, 5], [20, 40]]))


def step(time: float, tokens: int, learned: int = 1, **facts: Any) -> dict[str, Any]:
    return {
        "event": "step",
        "time": time,
        "tokens": tokens,
        "learned": learned,
        "rows": 2,
        "faults": 0,
        **facts,
    }


def outcome(*events: dict[str, Any], status: str = "done", error: str = "") -> Outcome:
    first = {"event": "loaded", "time": 105.0}
    return Outcome(100.0, [first, *events], seconds=50.0, peak_bytes=7, status=status, error=error)


def test_the_first_step_warms_up() -> None:
    run = outcome(step(115.0, 30, faults=900, loss=2.0), step(117.0, 70, learned=50, faults=1000, loss=1.5))
    facts = measured(run, ROWS, 2, 10)
    assert facts["status"] == "done"
    assert facts["tokens_per_second"] == pytest.approx(70 / 2)
    assert facts["learned_per_second"] == pytest.approx(50 / 2)
    assert facts["rows_per_second"] == pytest.approx(1.0)
    assert facts["load_seconds"] == 5.0 and facts["first_step_seconds"] == 15.0
    assert facts["job_seconds"] == pytest.approx(15 + 9 * 2)
    assert facts["faults_per_step"] == 100
    assert facts["losses"] == [2.0, 1.5] and "note" not in facts


def test_a_single_step_counts_and_says_so() -> None:
    facts = measured(outcome(step(125.0, 30)), ROWS, 2, 10)
    assert facts["tokens_per_second"] == pytest.approx(30 / 20)
    assert facts["note"] == "one step only, its warm-up included"


def test_tokens_that_are_not_those_of_the_rows_are_a_failure() -> None:
    run = outcome(step(110.0, 30), step(112.0, 71))
    facts = measured(run, ROWS, 2, 10)
    assert facts["status"] == "failed" and facts["error"] == "step 2 held 71 tokens, but its rows have 70"
    assert measured(run, ROWS, 2, 10, same_rows=False)["status"] == "done"


def test_steps_go_around_the_rows() -> None:
    run = outcome(step(110.0, 30), step(112.0, 70), step(114.0, 30))
    assert measured(run, ROWS, 2, 10)["status"] == "done"


def test_a_run_stopped_within_its_first_step_is_known_by_its_micro_batches() -> None:
    micro = [{"event": "micro", "time": t, "tokens": 10, "learned": 6, "rows": 1} for t in (115.0, 125.0)]
    facts = measured(outcome(*micro, status="stopped", error="stopped at the time limit"), ROWS, 2, 10)
    assert facts["status"] == "done" and facts["tokens_per_second"] == pytest.approx(1.0)
    assert facts["note"] == "no step was finished in time; from 2 micro-batches of the first one"


def test_a_run_without_any_micro_batch_has_a_bound() -> None:
    facts = measured(outcome(status="stopped", error="stopped at the time limit"), ROWS, 2, 10, micro=2)
    assert facts["status"] == "stopped"
    assert facts["bound_tokens_per_second"] == pytest.approx(
        30 / 45
    )  # 45 s after loading, it had not done 30
    (row,) = summary([{"contestant": "a", "about": "", "options": {}, **facts}])
    assert row["tokens_per_second"] is None and row["bound_tokens_per_second"] == pytest.approx(30 / 45)


def test_a_run_that_did_not_even_load() -> None:
    facts = measured(Outcome(0.0, status="failed", error="ValueError: no"), ROWS, 2, 10)
    assert facts["status"] == "failed" and "tokens_per_second" not in facts


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("ModuleNotFoundError: No module named 'trl'", "absent"),
        (
            "ImportError: liger-kernel is not available. Please install it with `pip install liger-kernel`",
            "absent",
        ),
        ("ImportError: cannot import name 'x' from 'y'", "failed"),
        ("ValueError: pip install", "failed"),
    ],
)
def test_a_library_that_is_not_installed_is_no_failure(error: str, status: str) -> None:
    facts = measured(Outcome(0.0, status="failed", error=error), ROWS, 2, 10)
    assert facts["status"] == status and facts["error"] == error


def test_summary_takes_medians_of_what_worked() -> None:
    def run(name: str, rate: float, status: str = "done") -> dict[str, Any]:
        facts = {"contestant": name, "about": "", "options": {}, "status": status, "error": "broke"}
        return {**facts, "tokens_per_second": rate, "peak_bytes": 5, "share_of_limit": rate / 40}

    rows = summary([run("a", 10), run("b", 1), run("a", 30), run("a", 20), run("b", 99, "failed")])
    assert [row["contestant"] for row in rows] == ["a", "b"]
    assert rows[0]["tokens_per_second"] == {"median": 20, "min": 10, "max": 30}
    assert rows[0]["share_of_limit"]["median"] == 0.5 and rows[0]["repeats"] == 3
    assert rows[1]["tokens_per_second"]["median"] == 1 and rows[1]["failures"] == ["broke"]


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=9))
def test_the_median_lies_within_the_spread(values: list[float]) -> None:
    found = median_and_spread(values)
    assert found is not None and found["min"] <= found["median"] <= found["max"]
    assert found["min"] in values and found["max"] in values


@given(st.lists(st.tuples(st.floats(0.01, 100.0), st.integers(1, 10_000)), min_size=2, max_size=8))
def test_rate_times_time_is_tokens(steps: list[tuple[float, int]]) -> None:
    """Whatever the steps, the rate accounts for exactly the tokens and the time after the first."""
    times = 105.0 + np.cumsum([seconds for seconds, _ in steps])
    events = [step(float(time), tokens) for time, (_, tokens) in zip(times, steps, strict=True)]
    facts = measured(outcome(*events), ROWS, 2, 10, same_rows=False)
    elapsed = float(times[-1] - times[0])
    assert facts["tokens_per_second"] * elapsed == pytest.approx(sum(tokens for _, tokens in steps[1:]))
