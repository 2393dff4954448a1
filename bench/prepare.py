"""Models and rows on disk: made once, kept in the cache, the same for every contestant."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.rows import Rows, make_rows
from bench.runner import Task
from bench.shapes import SHAPES, Shape
from bench.watch import run_process
from bench.workloads import Size, Workload

MODEL_VERSION = 1
"""Raised when checkpoint.py writes something else."""


def cache() -> Path:
    """Where models and rows are kept; safe to delete."""
    from luthier.places import cache_folder

    return cache_folder("bench")


def model_folder(shape: Shape, rank: int | None, max_positions: int, device: str = "cpu") -> Path:
    """The folder of a random model of this shape with an adapter of this rank, made if it is not there."""
    folder = cache() / f"{shape.name}-r{rank or 0}-{max_positions}-v{MODEL_VERSION}"
    if (folder / "complete").exists():
        return folder
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    spec = {
        "shape": shape.name,
        "folder": str(partial),
        "rank": rank,
        "max_positions": max_positions,
        "device": device,
    }
    outcome = run_process([sys.executable, "-m", "bench.contestants", "checkpoint"], spec, limit=900)
    if outcome.status != "done":
        raise RuntimeError(f"the random model {shape.name} could not be written: {outcome.error}")
    (partial / "complete").touch()
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return folder


def documents(
    workload: Workload, size: Size, shape: Shape, tokens: int, longest: int, seconds: float
) -> Rows:
    """Rows enough that a fast contestant does not read one twice; of long documents, fewer."""
    steps = 4 if size.tokens else max(8, min(64, int(seconds)))
    num_rows = size.samples if workload.kind == "generate" else size.samples * steps
    return make_rows(
        workload, size, tokens=tokens, num_rows=num_rows, vocabulary=shape.vocabulary, longest=longest
    )


def tasks(
    workload: Workload, device: str, *, seconds: float, dry_run: bool = False, models: tuple[str, ...] = ()
) -> Iterator[Task]:
    """The measurements of a workload on one kind of device: one a model, document length and memory cap.

    `dry_run`: the same plan with a tiny model and short rows, on the CPU: does everything start and count right?
    """
    size = workload.gpu if device == "cuda" else workload.cpu
    if size is None:
        return
    for name in models or size.models:
        for tokens in size.tokens or (0,):
            for cap in size.memory_caps or (None,):
                shape = SHAPES["tiny" if dry_run else name]
                if dry_run:
                    tokens = min(tokens, 96)
                yield _task(
                    workload, size, shape, "cpu" if dry_run else device, tokens, cap, seconds, dry_run
                )


def _task(
    workload: Workload,
    size: Size,
    shape: Shape,
    device: str,
    tokens: int,
    cap: float | None,
    seconds: float,
    dry_run: bool,
) -> Task:
    longest = tokens or (256 if dry_run else 4096 if workload.kind == "dpo" else 1024)
    rows = documents(workload, size, shape, tokens, longest, seconds)
    file = cache() / "rows" / f"{workload.key}-{shape.name}-{tokens}-{len(rows)}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.save(file)
    positions = max(2048, longest)
    return Task(
        workload=workload,
        size=size,
        shape=shape,
        device=device,
        tokens=int(rows.tokens.max()),
        model=model_folder(shape, workload.rank, positions, device),
        rows=rows,
        rows_file=file,
        memory_cap=None if dry_run else cap,
        dtypes=("bfloat16",) if device == "cuda" else ("float32", "bfloat16"),
        seconds=2.0 if dry_run else seconds,
        max_steps=2 if dry_run else 1000,
    )
