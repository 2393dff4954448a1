"""Whether a contestant learns the same: losses and first gradients next to those of the plain fp32 model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.contest import luthier, reference
from bench.runner import Task, run_one

STEPS = 3
"""Of documents up to 1,024 tokens; longer ones are slow in the plain model, and one step has to do."""
Tensors = Mapping[str, NDArray[np.float32]]


def relative(found: Sequence[float], truth: Sequence[float]) -> list[float]:
    """|found - truth| / |truth|, as far as both go."""
    return [abs(a - b) / abs(b) for a, b in zip(found, truth, strict=False)]


def compare_gradients(found: Tensors, truth: Tensors) -> dict[str, float]:
    """Least cosine of a tensor with its truth, and the relative L2 error of all together.

    Raises ValueError if they are not gradients of the same tensors.
    """
    if set(found) != set(truth):
        raise ValueError(f"gradients of other tensors: {sorted(set(found) ^ set(truth))[:4]}")
    cosines, error, size = [], 0.0, 0.0
    for name, right in truth.items():
        a, b = found[name].astype(np.float64).ravel(), right.astype(np.float64).ravel()
        cosines.append(float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300)))
        error += float(((a - b) ** 2).sum())
        size += float((b**2).sum())
    return {"least_cosine": min(cosines), "relative_error": (error / size) ** 0.5}


def measure_parity(task: Task, folder: Path, first_losses: Mapping[str, float]) -> dict[str, Any]:
    """Runs Luthier and the plain model for a few steps and compares them; not timed, clipping off.

    `first_losses`: each contestant's loss of its first step in the timed runs, which clipping does not touch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    losses: dict[str, list[float]] = {}
    files: dict[str, Path] = {}
    for contestant in (reference(), luthier(task.workload)):
        files[contestant.name] = folder / f"{contestant.name}.safetensors"
        files[contestant.name].unlink(missing_ok=True)
        facts, _ = run_one(
            task,
            contestant,
            seconds=1e4,
            max_steps=STEPS if task.tokens <= 1024 else 1,
            no_clip=True,
            gradients=str(files[contestant.name]),
            settings={"model": {"name": str(task.model), "device": task.device, "dtype": "float32"}},
        )
        if facts["status"] != "done" or not facts.get("losses"):
            return {"error": f"{contestant.name}: {facts['error'] or facts.get('note')}"}
        losses[contestant.name] = facts["losses"]
    truth = losses["reference"]
    return {
        "reference_losses": truth,
        "losses": relative(losses["luthier"], truth),
        "gradient": compare_gradients(_load(files["luthier"]), _load(files["reference"])),
        "first_loss": {name: relative([loss], truth)[0] for name, loss in first_losses.items()},
    }


def _load(path: Path) -> Tensors:
    from safetensors.numpy import load_file

    return load_file(path)
