"""Several adapters of one base model become one adapter, in PEFT's format. No model is loaded.

Sums are exact: factors side by side are the sum of the updates, at the sum of their ranks. Whatever is no sum, and
everything with a rank that is asked for, is brought to its best approximation of that rank by singular values.

Shape suffixes: K inputs, M outputs, R rank.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from luthier.errors import ModelError
from luthier.export.combine import load_way
from luthier.models.adapter_plan import (
    CONFIG_NAME,
    PREFIX,
    WEIGHTS_NAME,
    AdapterFiles,
    further_adapters,
    read_adapter,
    scale_of,
)
from luthier.models.adapter_shapes import PARAMETERS
from luthier.runs.atomic import atomic_folder

Factors = tuple[Tensor, Tensor]
"""A [R, K] and s·B [M, R], in fp32."""


@dataclass(frozen=True)
class Combined:
    """What came of it."""

    modules: int
    rank: int
    """Of most modules."""
    lost: float
    """How much of the updates' size the rank could not hold: ‖left out‖ / ‖all‖ over all modules."""


def combine_adapters(
    folders: Sequence[Path],
    weights: Sequence[float],
    out: Path,
    *,
    by: str = "linear",
    density: float = 0.5,
    rank: int | None = None,
    seed: int = 0,
) -> Combined:
    """Writes one adapter that stands for all of them.

    Args:
        folders: adapters in PEFT's format.
        weights: of each.
        by: a file of `export/combine/`.
        density: share of each update that ties and dare keep.
        rank: of the result. None: the sum of their ranks.
        seed: of dare's chance.

    Raises:
        ModelError: they do not fit each other, or have more than low-rank updates; or `out` exists.
    """
    if out.exists():
        raise ModelError(f"{out} exists already. Remove it, or give another folder for the combined adapter.")
    adapters = [read_adapter(folder) for folder in folders]
    updates = [_factors(files) for files in adapters]
    _check_fit(adapters, updates)
    names = list(dict.fromkeys(name for one in updates for name in one))
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    lost = size = 0.0
    for name in names:
        present = [(one[name], weight) for one, weight in zip(updates, weights, strict=True) if name in one]
        (a_RK, b_MR), left_out, of = _one(
            [f for f, _ in present], [w for _, w in present], by, density, rank, generator
        )
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a_RK.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b_MR.contiguous()
        ranks[name], lost, size = len(a_RK), lost + left_out, size + of
    most = max(ranks.values(), key=list(ranks.values()).count)
    with atomic_folder(out, replace=False) as partial:
        save_file(tensors, partial / WEIGHTS_NAME, {"format": "pt"})
        config = _config(adapters[0].config, ranks, most)
        (partial / CONFIG_NAME).write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
    return Combined(len(names), most, (lost / size) ** 0.5 if size else 0.0)


def _one(
    factors: Sequence[Factors],
    weights: Sequence[float],
    by: str,
    density: float,
    rank: int | None,
    generator: torch.Generator,
) -> tuple[Factors, float, float]:
    """The factors of one module's result, and the squares of what is left out of it and of all of it."""
    sizes = sum(len(a_RK) for a_RK, _ in factors)
    if by == "linear":
        a_RK = torch.cat([a_RK for a_RK, _ in factors])
        b_MR = torch.cat([weight * b_MR for (_, b_MR), weight in zip(factors, weights, strict=True)], 1)
        if rank is None or rank >= sizes:
            return (a_RK, b_MR), 0.0, float((b_MR @ a_RK).square().sum())
        left_MR, inner_M = torch.linalg.qr(b_MR)
        left_KR, inner_K = torch.linalg.qr(a_RK.T)
        left, values, right = torch.linalg.svd(inner_M @ inner_K.T)
        return _cut(left_MR @ left, values, right @ left_KR.T, rank)
    whole_MK = load_way(by)([b_MR @ a_RK for a_RK, b_MR in factors], weights, density, generator)
    left, values, right = torch.linalg.svd(whole_MK, full_matrices=False)
    return _cut(left, values, right, min(rank or sizes, len(values)))


def _cut(left: Tensor, values: Tensor, right: Tensor, rank: int) -> tuple[Factors, float, float]:
    """The first `rank` singular values, shared out to both factors."""
    root_R = values[:rank].sqrt()
    factors = root_R[:, None] * right[:rank], left[:, :rank] * root_R
    return factors, float(values[rank:].square().sum()), float(values.square().sum())


def _factors(files: AdapterFiles) -> dict[str, Factors]:
    """The update of each module. Raises ModelError for whatever is not one."""
    ends = (".lora_A.weight", ".lora_B.weight")
    if others := [key for key in files.tensors if not key.endswith(ends)]:
        raise ModelError(
            f"{files.folder} has more than low-rank updates (such as {others[0]}), which cannot be added up with "
            "others. Merge it into its base model (`luthier export`) instead."
        )
    if files.config.get(PARAMETERS):
        raise ModelError(
            f"{files.folder} has adapters on stacked experts, which cannot be added up with others. Merge it into "
            "its base model (`luthier export`) instead."
        )
    if others := further_adapters(files.folder):
        raise ModelError(
            f"{files.folder} was saved with other adapters, in the folders {', '.join(others)}. Which are meant? "
            "`luthier export` merges all of them; to combine single ones, move each into a folder of its own."
        )
    found = {}
    for key, a_RK in files.tensors.items():
        if key.endswith(ends[0]):
            name = key.removesuffix(ends[0])
            b_MR = files.tensors[name + ends[1]].float()
            found[name] = a_RK.float(), scale_of(files.config, name) * b_MR
    return found


def _check_fit(adapters: Sequence[AdapterFiles], updates: Sequence[dict[str, Factors]]) -> None:
    """Refuses adapters of models with other shapes."""
    shapes: dict[str, tuple[int, int]] = {}
    for files, one in zip(adapters, updates, strict=True):
        for name, (a_RK, b_MR) in one.items():
            shape = b_MR.shape[0], a_RK.shape[1]
            if shapes.setdefault(name, shape) != shape:
                raise ModelError(
                    f"{files.folder} changes a weight {list(shape)} of {name}, and {adapters[0].folder} one of "
                    f"{list(shapes[name])}: they were made for different models. Combine adapters of one model."
                )


def _config(first: Any, ranks: dict[str, int], most: int) -> dict[str, Any]:
    """PEFT's settings: those of the first, for these modules, all with the factor 1."""
    return {
        **first,
        "r": most,
        "lora_alpha": most,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "target_modules": sorted(ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != most},
        "alpha_pattern": {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != most},
    }
