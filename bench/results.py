"""The history of measurements: one JSON file each in results/, with all that is needed to judge it later."""

import json
import os
import re
from datetime import date
from pathlib import Path
from typing import Any

from bench.runner import Result, Task

FOLDER = Path(__file__).with_name("results")
SCHEMA = 1
REQUIRED = (
    "schema",
    "date",
    "workload",
    "device",
    "model",
    "settings",
    "machine",
    "gemm",
    "limit",
    "runs",
    "summary",
)


def machine(task_device: str, peers_python: Path | None) -> dict[str, Any]:
    """Processor, memory, versions, commit; and the versions in the peers' venv."""
    from luthier.runs.environment import describe_environment

    found = describe_environment()
    found["class"] = machine_class(found, task_device)
    found["load_before"] = os.getloadavg()[0]
    if peers_python is not None and peers_python.exists():
        found["peers"] = peer_versions(peers_python)
    return found


def machine_class(environment: dict[str, Any], device: str) -> str:
    """Machines of one class can be compared: the widest instructions for matrices and the number of cores."""
    if device == "cuda":
        names = [re.sub(r"\W+", "-", gpu["name"]) for gpu in environment.get("gpus", [])]
        return names[0] if names else "cuda"
    flags, cores = environment["cpu"]["flags"], environment["cpu"]["cores"]
    ranks = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "i8mm", "bf16", "asimd", "neon")
    widest = next((flag for flag in ranks if flag in flags), environment["cpu"]["architecture"])
    return f"cpu-{widest}-{cores}"


def peer_versions(python: Path) -> dict[str, str]:
    """Versions of the peers' packages, read from their venv without starting it."""
    found: dict[str, str] = {}
    for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "unsloth", "liger_kernel"):
        for folder in python.parent.parent.glob(f"lib*/python*/site-packages/{name}-*.dist-info"):
            found[name] = folder.name.removeprefix(f"{name}-").removesuffix(".dist-info")
    return found


def begin(task: Task, settings: dict[str, Any], about: dict[str, Any]) -> Result:
    """The head of a result: what is measured, on what, how."""
    return {
        "schema": SCHEMA,
        "date": date.today().isoformat(),
        "workload": task.workload.key,
        "about": task.workload.about,
        "device": task.device,
        "model": task.shape.name,
        "tokens": task.tokens,
        "memory_cap": task.memory_cap,
        "rows": {
            "number": len(task.rows),
            "samples_per_step": task.size.samples,
            "mean_tokens": float(task.rows.tokens.mean()),
            "longest": int(task.rows.tokens.max()),
        },
        "settings": settings,
        "machine": about,
        "gemm": [],
        "limit": None,
        "runs": [],
        "summary": [],
    }


def path_for(result: Result, folder: Path = FOLDER) -> Path:
    """A name that is not taken: date, workload, model where there are several, device."""
    parts = [result["date"], result["workload"], result["device"]]
    if result["device"] != "cpu":
        parts += [result["model"], str(result["tokens"])]
    if result["memory_cap"]:
        parts.append(f"{result['memory_cap']}GB")
    stem = "-".join(parts)
    taken = {path.stem for path in folder.glob(f"{stem}*.json")}
    names = [stem, *(f"{stem}.{number}" for number in range(2, len(taken) + 3))]
    return folder / f"{next(name for name in names if name not in taken)}.json"


def write(result: Result, path: Path) -> None:
    """Writes the result whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(rounded(result), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def rounded(value: Any) -> Any:
    """Numbers to eight digits, which is more than any of them means; losses keep what parity needs."""
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def read(path: Path) -> Result:
    """A result from its file.

    Raises ValueError if it is not one.
    """
    result = json.loads(path.read_text(encoding="utf-8"))
    missing = [name for name in REQUIRED if name not in result]
    if missing or result["schema"] != SCHEMA:
        raise ValueError(
            f"{path.name} is no result of this harness: it lacks {', '.join(missing) or 'its schema'}"
        )
    return result


def sweep_path(workload: str, model: str, tokens: int, class_name: str, folder: Path = FOLDER) -> Path:
    """Where the probes of TRL's sweep are kept for a kind of machine."""
    return folder / f"sweep-{workload}-{model}-{tokens}-{class_name}.json"
