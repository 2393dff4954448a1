"""One lease of a GPU from start to end: `python -m bench gpu --minutes 25 --out FOLDER` (bench/gpu.sh does it all).

First the parity of the kernels, then the workloads in the order of what we most want to know, each in as many of its
rounds as still fit into the time. Everything goes into one file, written after every run; `--unpack FILE` makes
entries of the history of it. `--dry-run` walks through the same plan with tiny models on the CPU.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import results
from bench.contest import PEERS_PYTHON, Contestant, luthier, peers
from bench.parity import measure_parity
from bench.prepare import tasks
from bench.runner import Task, compete
from bench.table import show
from bench.watch import ROOT
from bench.workloads import WORKLOADS

FILE = "gpu.json"
KERNELS: tuple[tuple[str, ...], ...] = (
    ("-m", "pytest", "-q", "-x", "tests/kernels"),
    ("bench/kernels.py",),
)
"""Parity of the kernels on the device, and their own benchmark."""


@dataclass(frozen=True)
class Part:
    """A measurement of the lease."""

    workload: str
    model: str
    tokens: int = 0
    names: tuple[str, ...] = ("luthier", "trl-tuned", "trl-liger", "unsloth")
    seconds: float = 12.0
    repeats: int = 3
    estimate: float = 150.0
    """Seconds that a round of all contestants takes; a round that does not fit into what is left is not begun."""


SMALL, LARGE = "Qwen3-0.6B", "Llama-3.1-8B"
EVERYBODY = ("luthier", "trl-default", "trl-tuned", "trl-tuned-packed", "trl-liger", "hf-bfloat16", "unsloth")
PLAN = (
    Part("A", LARGE),
    Part("A", SMALL, names=EVERYBODY, estimate=150),
    Part("C", LARGE, 8192),
    Part("F", SMALL, estimate=120),
    Part("C", LARGE, 32768, estimate=180),
    Part("C", SMALL, 8192, estimate=120),
    Part("G", LARGE, names=("luthier", "trl-default", "unsloth"), estimate=270),
    Part("E", SMALL, estimate=120),
    Part("C", SMALL, 32768, estimate=120),
    Part("generation", SMALL, names=("luthier", "hf-default"), estimate=60),
)


def tuned(task: Task) -> list[Contestant]:
    """TRL with settings that should be fast on a GPU with memory to spare. A sweep would take the lease, so these were
    chosen by hand, and are named so: TRL's best may be faster."""
    if task.workload.kind != "sft":
        return []
    length = max(1024, task.tokens)
    base = {"dtype": "bfloat16", "checkpointing": False, "max_length": length}
    micro = 1 if task.tokens > 4096 else min(8, task.size.samples)
    about = "TRL in bf16 without checkpointing{}; chosen by hand, no sweep"
    packed = {**base, "micro": max(1, micro // 4), "packing": True}
    return [
        Contestant("trl-tuned", "trl_sft", about.format(""), {**base, "micro": micro, "packing": False}),
        Contestant("trl-tuned-packed", "trl_sft", about.format(", packed"), packed),
    ]


def cast(task: Task, names: Sequence[str], device: str) -> list[Contestant]:
    """The contestants of a part."""
    found = [] if task.workload.missing else [luthier(task.workload)]
    found += [*tuned(task), *peers(task.workload, task.size, task.tokens, device, [])]
    return [contestant for contestant in found if contestant.name in names]


def lease(
    plan: Sequence[Part],
    *,
    minutes: float,
    folder: Path,
    dry_run: bool,
    console: Console,
    clock: Callable[[], float],
) -> list[dict[str, Any]]:
    """Works through the plan and returns all results; what did not fit is told in its place."""
    end, found = clock() + 60 * minutes, []
    folder.mkdir(parents=True, exist_ok=True)

    def save(result: dict[str, Any] | None = None) -> None:
        results.write({"results": [*found, *([result] if result else [])]}, folder / FILE)

    for part in plan:
        rounds = min(part.repeats, int((end - clock()) // part.estimate))
        if rounds < 1:
            found.append({"workload": part.workload, "model": part.model, "skipped": "no time was left"})
            console.print(f"{part.workload} {part.model}: no time is left")
            continue
        if rounds < part.repeats:
            console.print(f"{part.workload} {part.model}: time is left for {rounds} of {part.repeats} rounds")
        for task in chosen(part, dry_run):
            found.append(one(task, replace(part, repeats=rounds), folder, dry_run, console, save))
            save()
    return found


def chosen(part: Part, dry_run: bool) -> list[Task]:
    """The tasks of a part: one, or one for each cap of memory."""
    workload = WORKLOADS[part.workload]
    assert workload.gpu is not None, "the plan names workloads of the GPU"
    if part.tokens:
        workload = replace(workload, gpu=replace(workload.gpu, tokens=(part.tokens,)))
    return list(tasks(workload, "cuda", seconds=part.seconds, dry_run=dry_run, models=(part.model,)))


def one(
    task: Task, part: Part, folder: Path, dry_run: bool, console: Console, save: Callable[..., None]
) -> Any:
    """One task of a part."""
    device = "cpu" if dry_run else "cuda"
    settings = {"seconds": part.seconds, "repeats": part.repeats, "dry_run": dry_run, "names": part.names}
    result = results.begin(task, settings, results.machine(device, PEERS_PYTHON))
    if task.workload.missing:
        result["luthier"] = f"not yet: {task.workload.missing}"
        console.print(f"{part.workload}: luthier: not yet ({task.workload.missing})")
    contestants = cast(task, part.names, "cuda")
    if not contestants:
        return result

    def say(text: str) -> None:
        console.print(f"  {text}", highlight=False)

    result = compete(task, contestants, 1 if dry_run else part.repeats, result, say, save)
    if dry_run and task.workload.comparable:
        result["parity"] = measure_parity(task, folder / "parity", {})
    show(result, console)
    return result


def check_kernels(seconds: float) -> dict[str, Any]:
    """Runs the kernels' tests and their benchmark on the device; their last lines are kept."""
    found: dict[str, Any] = {"workload": "kernels"}
    for arguments in KERNELS:
        name = arguments[-1]
        if not (ROOT / name).exists():
            continue
        try:
            done = subprocess.run(
                [sys.executable, *arguments],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
            found[name] = {"status": done.returncode, "output": (done.stdout + done.stderr)[-6000:]}
        except subprocess.TimeoutExpired:
            found[name] = {"status": "stopped", "output": f"not done after {seconds:.0f} s"}
    return found


def unpack(file: Path, folder: Path) -> list[Path]:
    """Makes entries of the history out of what a lease brought back."""
    written = []
    for result in json.loads(file.read_text(encoding="utf-8"))["results"]:
        if result.get("runs"):
            written.append(results.path_for(result, folder))
            results.write(result, written[-1])
    return written


def failures(found: Sequence[dict[str, Any]]) -> list[str]:
    """What went wrong in runs that should have worked; libraries that are not installed are no failure."""
    return [
        f"{result['workload']}: {run['contestant']}: {run['error']}"
        for result in found
        for run in result.get("runs", [])
        if run["status"] not in ("done", "absent")
    ]


def main(arguments: Sequence[str] = ()) -> int:
    """Runs a lease, or unpacks one."""
    options = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    options.add_argument("--minutes", type=float, default=25.0, help="of the lease that may be used")
    options.add_argument(
        "--out", type=Path, default=Path("bench/.partial"), help="folder for the one result file"
    )
    options.add_argument("--dry-run", action="store_true", help="the same plan with tiny models on the CPU")
    options.add_argument("--part", action="append", default=[], help="only this workload; may be given again")
    options.add_argument("--no-peers", action="store_true", help="Luthier alone")
    options.add_argument("--no-kernels", action="store_true", help="leave out the kernels' parity")
    options.add_argument("--unpack", type=Path, help="a file of a lease: make entries of bench/results of it")
    known = options.parse_args(list(arguments))
    if known.unpack:
        print(*unpack(known.unpack, results.FOLDER), sep="\n")
        return 0
    console = Console(width=150)
    begin = time.monotonic()
    kernels = [] if known.no_kernels or known.dry_run else [check_kernels(180)]
    plan = [part for part in PLAN if not known.part or part.workload in known.part]
    if known.no_peers:
        plan = [replace(part, names=("luthier",)) for part in plan]
    left = known.minutes - (time.monotonic() - begin) / 60
    found = lease(
        plan, minutes=left, folder=known.out, dry_run=known.dry_run, console=console, clock=time.monotonic
    )
    results.write({"results": kernels + found}, known.out / FILE)
    wrong = failures(found)
    for text in wrong:
        print(text, file=sys.stderr)
    return 1 if wrong and known.dry_run else 0
