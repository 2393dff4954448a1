"""How much of a matrix is signal: its singular values beside those that a random matrix would have.

The singular values of an m x n matrix of independent numbers with deviation d lie, for large sizes, within
d·√n·(1 ± √(m/n)), m ≤ n (Marchenko and Pastur, 1967). Spectrum (arXiv:2406.06623) takes the spread of the bulk from
the quartiles of the values themselves, calls what lies above the upper end signal and the rest noise:

    spread = (q₃ - q₁) / 1.349        limit = spread · (1 + √(m/n))
    ratio  = Σ{s > limit} s / Σ{s ≤ limit} s / max(s)
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from luthier.errors import ConfigError
from luthier.places import cache_folder
from luthier.runs.atomic import atomic_write_text

QUARTILES = 1.349
"""Between the quartiles of a normal distribution lie so many standard deviations."""
Progress = Callable[[int, int, str], None]
"""Told how many matrices are done, of how many, and which one comes next."""


def singular_values(matrix: Tensor) -> Tensor:
    """All of them, largest first, in fp64: roots of the eigenvalues of the product of the shorter side with itself."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = short.detach().to(torch.float64)
    return torch.linalg.eigvalsh(wide @ wide.T).clamp_(min=0).sqrt_().flip(0)


def signal_to_noise(weight: Tensor) -> float:
    """The ratio above, of a matrix, or the mean over a stack of matrices [.., M, K]."""
    if weight.dim() > 2:
        parts = [signal_to_noise(matrix) for matrix in weight.flatten(0, -3)]
        return math.fsum(parts) / len(parts)
    values = singular_values(weight)
    short, long = sorted(weight.shape)
    quartiles = torch.quantile(values, torch.tensor([0.25, 0.75], dtype=values.dtype, device=values.device))
    limit = float(quartiles[1] - quartiles[0]) / QUARTILES * (1 + math.sqrt(short / long))
    largest, noise = float(values[0]), float(values[values <= limit].sum())
    if largest == 0:
        return 0.0
    signal = float(values[values > limit].sum())
    return signal / noise / largest if noise > 0 else math.inf


def rank(
    weights: Mapping[str, Tensor], progress: Progress = lambda done, total, name: None
) -> dict[str, float]:
    """The ratio of each weight. What was computed once is kept in the user's cache, under a hash of the weight."""
    found = {}
    for done, (name, weight) in enumerate(weights.items()):
        progress(done, len(weights), name)
        flat = weight.detach().contiguous().flatten().cpu()
        key = hashlib.sha256(f"{weight.dtype}:{tuple(weight.shape)}".encode())
        key.update(flat.view(torch.uint8).numpy().tobytes())
        kept = cache_folder("spectrum") / f"{key.hexdigest()[:32]}.json"
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(kept, json.dumps(signal_to_noise(weight)))
        found[name] = float(json.loads(kept.read_text(encoding="utf-8")))
    progress(len(weights), len(weights), "")
    return found


def kind_of(name: str) -> str:
    """What weights at the same place of other layers, and of other experts, have in common."""
    return re.sub(r"(^|\.)\d+(?=\.)", r"\1*", name)


def best(ratios: Mapping[str, float], share: float) -> set[str]:
    """Of each kind the given share of weights with the highest ratios, at least one."""
    kinds: dict[str, list[str]] = {}
    for name in ratios:
        kinds.setdefault(kind_of(name), []).append(name)
    chosen: set[str] = set()
    for names in kinds.values():
        in_order = sorted(names, key=lambda name: (-ratios[name], name))
        chosen.update(in_order[: max(1, round(share * len(names)))])
    return chosen


def read_ranking(path: Path) -> dict[str, float]:
    """What `luthier spectrum --out` wrote.

    Raises:
        ConfigError: it is not there, or something else.
    """
    try:
        ratios = json.loads(path.read_text(encoding="utf-8"))["ratios"]
        return {str(name): float(value) for name, value in ratios.items()}
    except OSError:
        raise ConfigError(
            f"tune.ranking is {path}, which cannot be read. Make it: luthier spectrum MODEL --out {path}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"tune.ranking is {path}, which holds no ranking. Make one: luthier spectrum MODEL --out FILE"
        ) from None
