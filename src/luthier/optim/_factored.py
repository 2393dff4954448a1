"""Running means of squares as one row and one column: R + C numbers for a matrix of R·C (arXiv:1804.04235, section 3).

The matrix is taken to be rows·columnsᵀ / mean(rows), which is the best such product by the divergence of the paper.
Stacked matrices are factored each on its own. Vectors keep all of their squares.

Shape suffixes: r rows, c columns; dimensions before them are stacks.
"""

import torch
from torch import Tensor


def start_factors(weight: Tensor, name: str = "square") -> dict[str, Tensor]:
    """States at zero: `<name>_rows` and `<name>_columns`, or `<name>` of a vector."""
    if weight.dim() < 2:
        return {name: torch.zeros_like(weight)}
    return {
        f"{name}_rows": torch.zeros_like(weight[..., 0]),
        f"{name}_columns": torch.zeros_like(weight[..., 0, :]),
    }


def follow_factors(state: dict[str, Tensor], square: Tensor, share: float, name: str = "square") -> None:
    """Moves the running means by `share` towards these squares."""
    if name in state:
        state[name].lerp_(square, share)
        return
    state[f"{name}_rows"].lerp_(square.mean(dim=-1), share)
    state[f"{name}_columns"].lerp_(square.mean(dim=-2), share)


def over_root(state: dict[str, Tensor], value: Tensor, name: str = "square") -> Tensor:
    """`value` over the root of the running means."""
    if name in state:
        return value * state[name].rsqrt()
    rows, columns = state[f"{name}_rows"], state[f"{name}_columns"]
    scaled_r = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt()
    return (value * scaled_r.unsqueeze(-1)).mul_(columns.rsqrt().unsqueeze(-2))


def clip_mean_square(update: Tensor, most: float) -> Tensor:
    """Scales the update down, in place, until the root of its mean square is at most `most`."""
    return update.div_((root_mean_square(update) / most).clamp_(min=1.0))


def root_mean_square(value: Tensor) -> Tensor:
    """A scalar on the value's device."""
    return torch.linalg.vector_norm(value) / max(1, value.numel()) ** 0.5
