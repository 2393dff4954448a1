"""One measurement: who against whom, on what, in which order; and everything that was seen, kept after every run."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import roofline
from bench.contest import Contestant
from bench.measure import measured, summary
from bench.rows import Rows
from bench.shapes import Shape
from bench.watch import Outcome, run_process
from bench.workloads import Size, Workload

Say = Callable[[str], None]
Save = Callable[[dict[str, Any]], None]
Result = dict[str, Any]


BUSY = 0.15
"""Cores that others may keep busy before a run is said to be disturbed."""
PROBE_SECONDS = 8.0
"""Of matrix products and copies between runs."""
PROBE_GRACE = 45.0
"""Seconds besides its own that a row of a sweep gets; one that has not done a micro-batch by then is no candidate."""


@dataclass(frozen=True)
class Task:
    """A workload on one model and one device, with everything on disk."""

    workload: Workload
    size: Size
    shape: Shape
    device: str
    tokens: int
    """Length of documents where it is fixed, otherwise of the longest one."""
    model: Path
    rows: Rows
    rows_file: Path
    seconds: float
    grace: float = 240.0
    """Seconds on top of `seconds` that a process may take to load and to finish the step under way."""
    memory_cap: float | None = None
    max_steps: int = 1000
    dtypes: tuple[str, ...] = ("float32", "bfloat16")

    def spec(self, contestant: Contestant, **extra: Any) -> dict[str, Any]:
        """What a contestant is told."""
        return {
            "workload": self.workload.key,
            "model": str(self.model),
            "rows": str(self.rows_file),
            "samples": self.size.samples,
            "rank": self.workload.rank,
            "four_bit": self.workload.four_bit,
            "lr": self.workload.lr,
            "answer": self.workload.answer,
            "seconds": self.seconds,
            "max_steps": self.max_steps,
            "device": self.device,
            "memory_cap": self.memory_cap,
            "options": contestant.options,
            "settings": {},
            **extra,
        }


def interleaved(
    contestants: Sequence[Contestant], repeats: int, have: dict[str, int]
) -> Iterator[Contestant]:
    """A-B-A-B: each repeat holds everybody once, so that a machine that slows down slows all of them.

    `have`: runs that were made before, which are not made again.
    """
    for repeat in range(repeats):
        for contestant in contestants:
            if have.get(contestant.name, 0) <= repeat:
                yield contestant


def run_one(task: Task, contestant: Contestant, **extra: Any) -> tuple[dict[str, Any], Outcome]:
    """One run of one contestant as numbers, and its events."""
    spec = task.spec(contestant, **extra)
    limit = spec["seconds"] + task.grace
    outcome = run_process(contestant.command(), spec, limit=limit, env=contestant.env)
    micro = contestant.options.get("micro", 1)
    counted = contestant.same_rows and task.workload.kind != "generate"
    facts = measured(
        outcome, task.rows, task.size.samples, task.workload.job_steps, same_rows=counted, micro=micro
    )
    head = {"contestant": contestant.name, "about": contestant.about, "options": contestant.options}
    return {**head, "env": contestant.env, **facts}, outcome


def measure_machine(task: Task, seconds: float) -> dict[str, Any]:
    """Rates of matrix products and of memory, now, and how busy the machine was before."""
    load = os.getloadavg()[0]
    contestant = Contestant("gemm", "gemm", "rates of the machine", peer=False)
    tokens = 64 if task.shape.name == "tiny" else 8192 if task.device == "cuda" else 2048
    extra = {"shape": task.shape.name, "tokens": tokens, "dtypes": task.dtypes, "seconds": seconds}
    outcome = run_process(contestant.command(), task.spec(contestant, **extra), limit=seconds + 120)
    found = {event["name"]: event["value"] for event in outcome.all("result")}
    return {"load": load, "others_cores": outcome.others, "error": outcome.error, **found}


def rates_of(machine: Sequence[dict[str, Any]], dtypes: Sequence[str]) -> tuple[str, roofline.Rates] | None:
    """The best rates of the dtype that the machine multiplies fastest; None if nothing was measured.

    The best and not the median: a machine that was disturbed in a probe is not slower for that.
    """
    good = [found for found in machine if "bandwidth" in found]
    if not good:
        return None

    def best(dtype: str, kind: str) -> float:
        return max(found[dtype][kind] for found in good)

    dtype = max(dtypes, key=lambda name: best(name, "forward"))
    kinds = {kind: best(dtype, kind) for kind in ("forward", "input_gradient", "weight_gradient")}
    width = max(found["bandwidth"] for found in good)
    return dtype, roofline.Rates(**kinds, bandwidth=width, element=4 if dtype == "float32" else 2)


def limit_of(task: Task, machine: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The additive roofline of this workload, in tokens a second, at the best rates that `machine` saw.

    None for preference pairs: their tokens are counted with a prompt for each answer, and need not be computed so.
    """
    found = rates_of(machine, task.dtypes)
    if found is None or task.workload.kind == "dpo":
        return None
    dtype, rates = found
    if task.workload.kind == "generate":
        limit = roofline.decode_limit(task.shape, task.size.samples, rates)
    else:
        per_step = float(task.rows.tokens.mean() * task.size.samples)
        limit = roofline.training_limit(task.shape, task.rows, task.workload.rank, per_step, rates)
    work = roofline.work_of(task.rows)
    return {
        "tokens_per_second": limit,
        "dtype": dtype,
        "forward": rates.forward,
        "input_gradient": rates.input_gradient,
        "weight_gradient": rates.weight_gradient,
        "bandwidth": rates.bandwidth,
        "operations_per_token": roofline.training_cost(task.shape, work, task.workload.rank).operations,
        "mean_attended_length": work.attended,
        "share_learned": work.learned,
    }


def compete(
    task: Task, contestants: Sequence[Contestant], repeats: int, result: Result, say: Say, save: Save
) -> Result:
    """Runs everybody `repeats` times, and measures the machine before each run and after the last.

    The limit is that of the machine at its best in the whole session. On machines that are shared, the machine
    itself changes by more than contestants differ; so each run is also held against the machine as it was just
    before and just after (`share_around`), which compares contestants and is no limit.
    """
    runs, machine = result.setdefault("runs", []), result.setdefault("gemm", [])
    have = {c.name: sum(run["contestant"] == c.name for run in runs) for c in contestants}
    probe = min(PROBE_SECONDS, max(0.2, task.seconds / 5))
    for contestant in interleaved(contestants, repeats, have):
        machine.append(measure_machine(task, probe))
        facts, _ = run_one(task, contestant)
        number = sum(run["contestant"] == contestant.name for run in runs) + 1
        runs.append({"repeat": number, "gemm_before": len(machine) - 1, **facts})
        say(one_line(facts))
        _conclude(task, result)
        save(result)
    machine.append(measure_machine(task, probe))
    _conclude(task, result)
    save(result)
    return result


def _conclude(task: Task, result: Result) -> None:
    machine = result["gemm"]
    result["limit"] = limit_of(task, machine)
    for run in result["runs"]:
        near = limit_of(task, machine[run["gemm_before"] : run["gemm_before"] + 2])
        run["share_of_limit"] = _share(run, result["limit"])
        run["share_around"] = _share(run, near)
    shares = [run["share_of_limit"] or 0.0 for run in result["runs"]]
    if result["limit"]:
        result["limit"]["exceeded"] = max(shares, default=0.0) > 1.0
    result["summary"] = summary(result["runs"])
    result["load_after"] = os.getloadavg()[0]


def _share(run: dict[str, Any], limit: dict[str, Any] | None) -> float | None:
    rate = run.get("tokens_per_second")
    return rate / limit["tokens_per_second"] if limit and rate else None


def one_line(facts: dict[str, Any]) -> str:
    """A run in a line, for whoever waits."""
    name = facts["contestant"]
    if facts["status"] != "done":
        return f"{name}: {facts['status']}: {facts['error']}"
    rate, memory = facts.get("tokens_per_second", 0.0), facts["peak_bytes"] / 1e9
    first = facts.get("first_step_seconds")
    told = f", first step after {first:.1f} s" if first else ""
    told += f", others kept {facts['others_cores']:.1f} cores busy" if facts["others_cores"] > BUSY else ""
    note = f" ({facts['note']})" if facts.get("note") else ""
    return f"{name}: {rate:,.1f} tokens/s, {memory:.2f} GB{told}{note}"


def probe_sweep(task: Task, rows: Sequence[Contestant], seconds: float, say: Say) -> list[dict[str, Any]]:
    """Every row of a sweep for one step or a few seconds: enough to see which are worth measuring."""
    task, found = replace(task, grace=min(task.grace, PROBE_GRACE)), []
    for contestant in rows:
        facts, _ = run_one(task, contestant, seconds=seconds, max_steps=1)
        say(one_line(facts))
        found.append(facts)
    return found


def fastest(probes: Sequence[dict[str, Any]], number: int = 2) -> list[dict[str, Any]]:
    """Options of the fastest rows of a sweep, the fastest first."""
    good = [probe for probe in probes if probe["status"] == "done" and probe.get("tokens_per_second")]
    good.sort(key=lambda probe: -probe["tokens_per_second"])
    return [probe["options"] for probe in good[:number]]
