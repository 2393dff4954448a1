"""What `make bench`, `python -m bench` and `luthier bench` do."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import results
from bench.contest import PEERS_PYTHON, Contestant, imitation, luthier, peers, sweep
from bench.parity import measure_parity
from bench.prepare import tasks
from bench.runner import Result, Task, compete, fastest, probe_sweep
from bench.table import show
from bench.workloads import WORKLOADS, Workload

USUAL = ("A", "C", "F", "generation")
"""Workloads of a run that names none: those with a goal."""


@dataclass(frozen=True)
class Options:
    """What a person asks for."""

    workloads: tuple[str, ...] = ()
    device: str = "cpu"
    seconds: float = 60.0
    repeats: int = 3
    peers: bool = True
    only: tuple[str, ...] = ()
    """Names of contestants to take; all if empty."""
    models: tuple[str, ...] = ()
    dry_run: bool = False
    sweep: bool = True
    """Probe the rows of TRL's sweep that were not probed on this kind of machine; False: take what is known."""
    sweep_row: tuple[str, ...] = ()
    """Names of rows to probe, where time is short; all if empty. The others stay unprobed."""
    resweep: bool = False
    sweep_seconds: float = 10.0
    grace: float = 240.0
    """Seconds on top of `seconds` that a process may take to load and to finish a step."""
    parity: bool = True
    profile: bool = False
    resume: str = ""
    """A result file of a run that was cut short: its missing runs are made."""
    out: str = ""
    """Folder for result files."""


def run(options: Options, console: Console | None = None) -> list[Path]:
    """Runs the workloads, prints their tables, returns the files of their results."""
    console = console or wide_console()
    folder = Path(options.out) if options.out else results.FOLDER
    written: list[Path] = []
    with tempfile.TemporaryDirectory() as scratch:
        if options.dry_run and not options.out:
            folder = Path(scratch)
        for key in options.workloads or USUAL:
            workload = find(key)
            for task in tasks(
                workload,
                options.device,
                seconds=options.seconds,
                dry_run=options.dry_run,
                models=options.models,
            ):
                path = measure(task, options, folder, Path(scratch), console)
                written += [path] if path else []
    return [] if options.dry_run and not options.out else written


def wide_console() -> Console:
    """The terminal, or in a file lines that are long enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=150)


def find(key: str) -> Workload:
    """A workload by its key, in any case.

    Raises ValueError naming all of them.
    """
    by_key = {known.lower(): workload for known, workload in WORKLOADS.items()}
    if key.lower() not in by_key:
        raise ValueError(f"there is no workload {key!r}; there are {', '.join(WORKLOADS)}")
    return by_key[key.lower()]


def measure(task: Task, options: Options, folder: Path, scratch: Path, console: Console) -> Path | None:
    """One task from contestants to table."""

    def say(text: str) -> None:
        console.print(f"  {text}", highlight=False)

    task = replace(task, grace=options.grace)
    console.print(f"[bold]{task.workload.key}[/] {task.workload.about}: {task.shape.name}, {task.device}")
    about = results.machine(options.device, PEERS_PYTHON)
    if options.profile:
        return profile(task, about, folder, console)
    contestants = taking_part(task, options, folder, about["class"], say)
    if task.workload.missing:
        say(f"luthier: not yet ({task.workload.missing})")
    if not contestants:
        return None
    result, path = opened(task, options, about, folder)
    if any(one.name.startswith("trl-best") for one in contestants):
        result["sweep"] = sweep_state(task, folder, about["class"])
    result = compete(
        task, contestants, options.repeats, result, say, lambda found: results.write(found, path)
    )
    if options.parity and task.workload.comparable:
        result["parity"] = measure_parity(task, scratch / "parity", first_losses(result, contestants))
        if "error" in result["parity"]:
            say(f"parity was not measured: {result['parity']['error']}")
        results.write(result, path)
    if task.workload.kind == "generate":
        result["parity"] = {"same_answers": same_answers(result)}
        results.write(result, path)
    show(result, console)
    return path


def opened(task: Task, options: Options, about: dict[str, Any], folder: Path) -> tuple[Result, Path]:
    """A new result, or one to go on with."""
    if options.resume:
        result = results.read(Path(options.resume))
        told = {"workload": task.workload.key, "model": task.shape.name, "tokens": task.tokens}
        if other := {name: result[name] for name, value in told.items() if result[name] != value}:
            raise ValueError(f"{options.resume} holds {other}, not {told}; name the workload that it is of")
        if result["machine"]["class"] != about["class"]:
            raise ValueError(
                f"{options.resume} was measured on {result['machine']['class']}, not {about['class']}"
            )
        return result, Path(options.resume)
    result = results.begin(task, asdict(options), about)
    if task.workload.missing:
        result["luthier"] = f"not yet: {task.workload.missing}"
    return result, results.path_for(result, folder)


def taking_part(task: Task, options: Options, folder: Path, class_name: str, say: Any) -> list[Contestant]:
    """Luthier and, if they are wanted and there, the peers; TRL's best rows from its sweep."""
    found = [] if task.workload.missing else [luthier(task.workload)]
    if task.workload.kind == "dpo":
        found.append(imitation())
    if options.peers:
        best = best_of_sweep(task, options, folder, class_name, say) if wants_best(options) else []
        found += peers(task.workload, task.size, task.tokens, options.device, best)
    if options.only:
        found = [contestant for contestant in found if contestant.name in options.only]
    return found


def wants_best(options: Options) -> bool:
    """Whether a row of the sweep is among the contestants."""
    return not options.only or any(name.startswith("trl-best") for name in options.only)


def best_of_sweep(
    task: Task, options: Options, folder: Path, class_name: str, say: Any
) -> list[dict[str, Any]]:
    """The fastest rows of TRL's sweep on this kind of machine; probed now unless that was done before."""
    rows = sweep(task.workload, task.size, task.tokens)
    if not rows:
        return []
    if options.dry_run:  # a row of each kind is enough to see that they run
        return [rows[0].options, rows[-1].options]
    path = results.sweep_path(task.workload.key, task.shape.name, task.tokens, class_name, folder)
    known: list[dict[str, Any]] = []
    if path.exists() and not options.resweep:
        known = json.loads(path.read_text(encoding="utf-8"))["rows"]
    left = [row for row in rows if row.name not in {found["contestant"] for found in known}]
    left = [row for row in left if options.sweep and row.name in (options.sweep_row or [row.name])]
    for row in left:  # kept one by one: a sweep takes long, and may be cut short
        known += probe_sweep(task, [row], options.sweep_seconds, say)
        results.write({"workload": task.workload.key, "class": class_name, "rows": known}, path)
    return fastest(known)


def sweep_state(task: Task, folder: Path, class_name: str) -> dict[str, list[str]]:
    """Which rows of TRL's declared sweep were probed on this kind of machine, and which were not."""
    path = results.sweep_path(task.workload.key, task.shape.name, task.tokens, class_name, folder)
    known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    probed = [row["contestant"] for row in known]
    declared = [row.name for row in sweep(task.workload, task.size, task.tokens)]
    return {"probed": probed, "unprobed": [name for name in declared if name not in probed]}


def first_losses(result: Result, contestants: Sequence[Contestant]) -> dict[str, float]:
    """Each contestant's loss of its first step, where that held the same rows."""
    same = {contestant.name for contestant in contestants if contestant.same_rows}
    runs = [run for run in result["runs"] if run["contestant"] in same and run.get("losses")]
    return {run["contestant"]: run["losses"][0] for run in runs}


def same_answers(result: Result, truth: str = "hf-float32") -> dict[str, float]:
    """Share of answers that are those of transformers in fp32. Greedy answers of a random model part for good
    where two tokens are nearly as likely, so a share below 1 is no fault by itself."""
    answers = {run["contestant"]: run["answers"] for run in result["runs"] if run.get("answers")}
    if truth not in answers:
        return {}
    right = answers[truth]
    return {
        name: sum(a == b for a, b in zip(found, right, strict=True)) / len(right)
        for name, found in answers.items()
    }


def profile(task: Task, about: dict[str, Any], folder: Path, console: Console) -> Path | None:
    """Where Luthier's step goes, shown and kept."""
    from bench.profile import table
    from bench.runner import run_one

    facts, outcome = run_one(task, luthier(task.workload), profile=True)
    values = [event["value"] for event in outcome.all("result") if event["name"] == "profile"]
    if not values:
        console.print(f"no profile: {facts['error']}")
        return None
    console.print(table(values[0]))
    head = {
        key: results.begin(task, {}, about)[key] for key in ("schema", "date", "workload", "model", "rows")
    }
    name = f"profile-{task.workload.key}-{task.device}-{head['date']}.json"
    results.write({**head, "machine": about, "profile": values[0]}, folder / name)
    return folder / name
