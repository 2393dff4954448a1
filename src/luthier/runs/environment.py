"""What a run ran on: versions, processor, memory, GPUs, commit. Nothing about whose machine it is."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "luthier",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "datasets",
    "pydantic",
    "numpy",
    "pyarrow",
    "gguf",
    "triton",
    "flash-attn",
    "bitsandbytes",
    "deepspeed",
    "ray",
)
CPU_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "neon",
    "asimd",
    "bf16",
    "i8mm",
    "sve",
)


def describe_environment(extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The environment as plain JSON. `extra` adds what only torch can tell, such as the chosen device.

    Holds no user name, no host name, no path. What cannot be found out is absent.
    """
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu(),
        "memory_bytes": _memory(),
        "gpus": _gpus(),
        "packages": _packages(),
        "git": _git(),
        **(extra or {}),
    }
    return {name: value for name, value in found.items() if value not in (None, [], {})}


def _cpu() -> dict[str, Any]:
    info = _read(Path("/proc/cpuinfo"))
    facts: dict[str, str] = {}
    for line in info.splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip().lower(), value.strip())
    flags = set((facts.get("flags") or facts.get("features") or "").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": facts.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": usable,
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
    }


def _memory() -> int | None:
    """Bytes of memory, or the container's limit where that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _gpus() -> list[dict[str, Any]]:
    rows = _output(
        "nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"
    )
    gpus: list[dict[str, Any]] = []
    for row in (rows or "").splitlines():
        fields = [field.strip() for field in row.split(",")]
        if len(fields) == 3:
            memory = int(fields[1]) * 2**20 if fields[1].isdigit() else None
            gpus.append({"name": fields[0], "memory_bytes": memory, "driver": fields[2]})
    return gpus


def _packages() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git() -> dict[str, Any] | None:
    commit = _output("git", "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _output("git", "-c", "core.fsmonitor=false", "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit.strip(), "changed": None if changes is None else bool(changes.strip())}


def _output(program: str, *arguments: str) -> str | None:
    """What a program prints; None where it is not installed, fails or takes over ten seconds."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"{program} did not answer ({error}); environment.json goes without it", file=sys.stderr)
        return None
    return done.stdout if done.returncode == 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
