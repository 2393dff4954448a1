"""From the events of a run to numbers. What a contestant logs about its own speed is not read."""

import statistics
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.rows import Rows
from bench.watch import Outcome


def measured(
    outcome: Outcome, rows: Rows, samples: int, job_steps: int, *, same_rows: bool = True, micro: int = 1
) -> dict[str, Any]:
    """One run as numbers; without a single finished step, what can be said all the same.

    `same_rows`: its steps should hold the rows of the file in order. `micro`: rows of one of its micro-batches.
    The first step warms up. If there was time for one step only, it is taken, and `note` says so.
    """
    facts: dict[str, Any] = {
        "status": "absent" if _absent(outcome.error) else outcome.status,
        "error": outcome.error,
        "process_seconds": round(outcome.seconds, 2),
        "others_cores": outcome.others,
        "peak_bytes": outcome.peak_bytes,
        "notes": [event["text"] for event in outcome.all("note")],
    }
    steps, loaded = outcome.all("step"), outcome.all("loaded")
    if not loaded:
        return facts
    facts["load_seconds"] = loaded[-1]["time"] - outcome.started
    if not steps:
        return facts | _unfinished(outcome, rows, micro, loaded[-1]["time"])
    facts |= _steady(steps, loaded[-1]["time"])
    facts["first_step_seconds"] = steps[0]["time"] - outcome.started
    facts["job_seconds"] = facts["first_step_seconds"] + (job_steps - 1) * facts["step_seconds"]
    facts["losses"] = [step["loss"] for step in steps if "loss" in step]
    facts |= {name: steps[-1][name] for name in ("gpu_allocated", "gpu_reserved") if name in steps[-1]}
    if "ids" in steps[-1]:  # of generation: what was written, short enough to keep
        facts["answers"] = [zlib.crc32(repr(ids).encode()) for ids in steps[-1]["ids"]]
    if same_rows and (wrong := _miscounted(steps, rows, samples)):
        facts |= {"status": "failed", "error": wrong}
    elif outcome.status == "stopped":  # after enough steps to tell the speed
        facts |= {"status": "done", "note": "stopped at the time limit; the steps it finished count"}
    return facts


def _absent(error: str) -> bool:
    """Whether a library was not there; that is no failure of the contestant."""
    told = error.startswith("ImportError") and "pip install" in error
    return told or error.startswith(("ModuleNotFoundError", "PackageNotFoundError"))


def _steady(steps: Sequence[dict[str, Any]], loaded: float) -> dict[str, Any]:
    """Rates over the steps after the first, or over the first if it is the only one."""
    facts: dict[str, Any] = {}
    first, timed = (steps[0]["time"], steps[1:]) if len(steps) > 1 else (loaded, steps)
    if len(steps) == 1:
        facts["note"] = "one step only, its warm-up included"
    elapsed = timed[-1]["time"] - first
    for name, rate in (
        ("tokens", "tokens_per_second"),
        ("learned", "learned_per_second"),
        ("rows", "rows_per_second"),
    ):
        facts[rate] = sum(step[name] for step in timed) / elapsed
    facts["steps"] = len(timed)
    facts["step_seconds"] = elapsed / len(timed)
    if len(steps) > 1:
        facts["faults_per_step"] = (steps[-1]["faults"] - steps[0]["faults"]) / len(timed)
    return facts


def _unfinished(outcome: Outcome, rows: Rows, first: int, loaded: float) -> dict[str, Any]:
    """A run that was stopped in its first step: the rate of the micro-batches it finished, or a bound.

    `first`: rows of its first micro-batch.
    """
    micro = outcome.all("micro")
    if not micro:
        if outcome.status != "stopped":
            return {"note": "not one micro-batch was finished"}
        elapsed = outcome.started + outcome.seconds - loaded
        bound = float(rows.logical[:first].sum() / elapsed)
        return {
            "bound_tokens_per_second": bound,
            "note": f"not one micro-batch was finished in {elapsed:.0f} s: under {bound:.1f} tokens/s",
        }
    elapsed = micro[-1]["time"] - loaded
    return {
        "status": "done",
        "error": "",
        "note": f"no step was finished in time; from {len(micro)} micro-batches of the first one",
        "tokens_per_second": sum(event["tokens"] for event in micro) / elapsed,
        "learned_per_second": sum(event["learned"] for event in micro) / elapsed,
        "rows_per_second": sum(event["rows"] for event in micro) / elapsed,
        "steps": 0,
    }


def _miscounted(steps: Sequence[dict[str, Any]], rows: Rows, samples: int) -> str:
    """What is wrong with the tokens that a contestant's steps held; empty if nothing is."""
    for number, step in enumerate(steps):
        held = np.arange(number * samples, (number + 1) * samples) % len(rows)
        if (expected := int(rows.logical[held].sum())) != step["tokens"]:
            return f"step {number + 1} held {step['tokens']} tokens, but its rows have {expected}"
    return ""


def median_and_spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, least and greatest."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


SUMMARISED = (
    "tokens_per_second",
    "learned_per_second",
    "rows_per_second",
    "step_seconds",
    "first_step_seconds",
    "job_seconds",
    "peak_bytes",
    "gpu_allocated",
    "gpu_reserved",
    "faults_per_step",
    "others_cores",
    "share_of_limit",
    "share_around",
)


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a contestant: median, least and greatest of each figure over its repeats."""
    names = list(dict.fromkeys(run["contestant"] for run in runs))
    return [_summary_of([run for run in runs if run["contestant"] == name]) for name in names]


def _summary_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    good = [run for run in runs if run["status"] == "done"]
    bounds = [run["bound_tokens_per_second"] for run in runs if "bound_tokens_per_second" in run]
    facts: dict[str, Any] = {
        "contestant": runs[0]["contestant"],
        "about": runs[0]["about"],
        "options": runs[0]["options"],
        "repeats": len(good),
        "failures": [run["error"] for run in runs if run["status"] != "done"],
        "notes": sorted({run["note"] for run in runs if run.get("note")}),
    }
    for name in SUMMARISED:
        facts[name] = median_and_spread([run[name] for run in good if run.get(name) is not None])
    facts["bound_tokens_per_second"] = min(bounds) if bounds else None
    return facts
