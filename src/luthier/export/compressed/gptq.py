"""GPTQ: columns of a weight are rounded one by one, and what is lost is made up for by those that are still exact.

    min over codes of tr((W - Q)·H·(W - Q)ᵀ),    H = Σ over tokens of x·xᵀ      for y = W·x
    for each column k:    e = (w_k - q_k) / U_kk;    W_:,j -= e·U_kj  for j >= k,    U upper, Uᵀ·U = H⁻¹

(Frantar et al. 2022, arXiv:2210.17323.) Columns with the largest Σ x² come first, while there are the most others to
make up for them. Scales are those of rounding to the nearest, found beforehand, so the order need not be stored. A
share of the mean Σ x² is added to the diagonal of H. Where all that did not help on the rows, the nearest codes are
kept.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.export.compressed.layers import Layer, Progress, layers_on, linear_inside
from luthier.export.compressed.types import Type
from luthier.export.compressed.write import Made
from luthier.models.load import load_model

DAMPING = 0.01
"""Added to the diagonal of H, as a part of its mean."""
BLOCK = 128
"""Columns after which the rest of the matrix is brought up to date."""


def gptq_codes(weight_MK: Tensor, hessian_KK: Tensor, scale_MG: Tensor, chosen: Type) -> Tensor:
    """The codes [M, K] of a weight, in the type of `hessian_KK`, in which everything is computed."""
    values_KM = weight_MK.to(hessian_KK.dtype).T.contiguous()
    num_in = len(values_KM)
    scale_KM = scale_MG.to(values_KM.dtype).T[torch.arange(num_in) // (chosen.group or num_in)]
    nearest_KM = chosen.codes(values_KM, scale_KM)
    order = hessian_KK.diagonal().argsort(descending=True, stable=True)
    upper_KK = _upper(hessian_KK[order][:, order])
    left_KM, ordered_KM = values_KM[order], scale_KM[order]
    codes_KM = torch.empty_like(left_KM)
    for start in range(0, num_in, BLOCK):
        end = min(start + BLOCK, num_in)
        lost_KM = torch.empty_like(left_KM[start:end])
        for k in range(start, end):
            codes_KM[k] = chosen.codes(left_KM[k], ordered_KM[k])
            lost_KM[k - start] = (left_KM[k] - codes_KM[k] * ordered_KM[k]) / upper_KK[k, k]
            left_KM[k:end].addr_(upper_KK[k, k:end], lost_KM[k - start], alpha=-1)
        left_KM[end:].addmm_(upper_KK[start:end, end:].T, lost_KM, alpha=-1)
    found_KM = torch.empty_like(codes_KM)
    found_KM[order] = codes_KM
    lost = [_error(values_KM - codes * scale_KM, hessian_KK) for codes in (found_KM, nearest_KM)]
    return (found_KM if lost[0] <= lost[1] else nearest_KM).T.contiguous()


def _upper(hessian_KK: Tensor) -> Tensor:
    """U with Uᵀ·U = (H + damping)⁻¹; more is added where that is not enough for the precision at hand."""
    mean = hessian_KK.diagonal().mean()
    damping = DAMPING
    while damping < 1e6:
        damped = hessian_KK + torch.eye(len(hessian_KK), dtype=hessian_KK.dtype) * (damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        damping *= 10
    raise ModelError(
        "what the layers read on the run's rows is not finite or zero, so nothing can be rounded by it."
    )


def _error(off_KM: Tensor, hessian_KK: Tensor) -> Tensor:
    """Σ over tokens of |offᵀ·x|²."""
    return ((hessian_KK @ off_KM) * off_KM).sum()


def hessians(layer: Layer, names: Sequence[str]) -> dict[str, Tensor]:
    """Σ x·xᵀ over all tokens for each of the linear layers in a decoder layer; one tensor for those that read the same.

    A layer that no row reaches has none.
    """
    sums: dict[str, Tensor] = {}
    owner: dict[str, str] = {}
    last: tuple[str, Tensor] | None = None

    def see(name: str, given: Tensor) -> None:
        nonlocal last
        if last is not None and last[1] is given and owner.get(name, last[0]) == last[0]:
            owner[name] = last[0]
            return
        if owner.setdefault(name, name) != name:
            raise AssertionError(f"{name} read the same as {owner[name]} for some rows only")
        last = name, given
        x_TK = given.reshape(-1, given.shape[-1]).float()
        sums[name] = sums[name].addmm_(x_TK.T, x_TK) if name in sums else x_TK.T @ x_TK

    layer.watch(names, see)
    return {name: sums[first] for name, first in owner.items()}


@torch.no_grad()
def by_gptq(
    folder: Path,
    chosen: Type,
    dtype: torch.dtype,
    linear: Collection[str],
    rows: Sequence[Sequence[int]],
    progress: Progress | None = None,
) -> Made:
    """The codes of these linear layers, as far as they are in decoder layers that the rows reach.

    Args: `write.Maker`'s, tokens of rows of data, and what is told after each layer.

    Raises ModelError if the model's layers cannot be taken one by one.
    """
    model = load_model(folder, torch.float32, torch.device("cpu"))
    parts: dict[str, dict[str, Tensor]] = {}
    for layer in layers_on(model, rows, progress):
        for name, hessian_KK in hessians(layer, linear_inside(layer, linear)).items():
            module = layer.module.get_submodule(name)
            assert isinstance(module, nn.Linear)
            scale_MG = chosen.scales(module.weight, dtype)
            codes_MK = gptq_codes(module.weight, hessian_KK, scale_MG, chosen)
            grouped_MGk = codes_MK.view(*scale_MG.shape, -1)
            module.weight.copy_((grouped_MGk * scale_MG.unsqueeze(-1)).view_as(codes_MK))
            parts[f"{layer.name}.{name}"] = chosen.packed(codes_MK, scale_MG, dtype)
    return Made(parts)
