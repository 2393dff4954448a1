"""Q-GaLore: GaLore with a projection in 4 bits that is made anew less and less often (Zhang et al., 2024,
arXiv:2407.08296, section 3).

The projection P of GaLore is kept as whole numbers of 4 bits, evenly spaced between the least and the greatest of each
256. Where the last projections of a weight hardly turned, the next one comes after twice as many steps: most weights'
gradients soon stay in one subspace, and the singular value decompositions are what GaLore costs. How much it turned is
the mean |cosine| between columns of the new one and the old. Moments are those of AdamW in 8 bits.

The paper also keeps the weights in 8 bits, with stochastic rounding. That is not done here: weights and their fp32
masters are the same for all optimizers.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.optim._blockwise import Format
from luthier.optim._thrifty_adam import SMALL
from luthier.optim.galore import GaLore
from luthier.optim.pieces import About, Piece

LEVELS, BLOCK = 15, 256


@settings
class QGaLore(GaLore):
    """GaLore with states in 8 bits and projections in 4, made anew only where gradients still turn."""

    formats: ClassVar = {"mean": Format(8, 256, "dynamic"), "square": Format(8, 256, "unsigned")}

    alike: Annotated[float, Field(gt=0, le=1)] = 0.4
    """From this mean |cosine| on, two projections that follow each other count as alike."""

    window: Annotated[int, Field(ge=1)] = 5
    """Projections in a row whose mean decides whether the next ones come after twice as many steps."""

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """Moments of the projected gradient and the projection, as codes; when the next one is due."""
        rows, columns = weight.shape
        size = self.rank * max(rows, columns)
        state: dict[str, Tensor] = {}
        for name, form in self.formats.items():
            small = (self.rank, columns) if rows <= columns else (rows, self.rank)
            if size < SMALL:
                state[name] = weight.new_zeros(small)
            else:
                num_bytes, blocks = form.codes(size)
                state[name] = weight.new_zeros(num_bytes, dtype=torch.uint8)
                state[f"{name}_scales"] = weight.new_zeros(blocks, dtype=torch.float32)
        blocks = -(-min(rows, columns) * self.rank // BLOCK)
        return state | {
            "projection": weight.new_zeros(blocks * BLOCK // 2, dtype=torch.uint8),
            "projection_ends": weight.new_zeros(blocks, 2, dtype=torch.float32),
            "plan": weight.new_zeros(3 + self.window, dtype=torch.float32),
        }

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """One piece after another."""
        for piece in pieces:
            gradient, step = piece.gradient, float(piece.step)
            wide = gradient.shape[0] <= gradient.shape[1]
            projection = self._projection(piece, gradient if wide else gradient.T)
            small = projection.T @ gradient if wide else gradient @ projection
            mean = self._whole(piece, "mean", small).lerp_(small, 1 - self.beta1)
            square = self._whole(piece, "square", small).mul_(self.beta2)
            square.addcmul_(small, small, value=1 - self.beta2)
            self._keep(piece, "mean", mean)
            self._keep(piece, "square", square)
            root = (square / (1 - self.beta2**step)).sqrt_().add_(self.eps)
            update = mean / root.mul_(1 - self.beta1**step)
            back = projection @ update if wide else update @ projection.T
            piece.weight.mul_(1 - lr * weight_decay).sub_(back, alpha=lr * self.scale)

    def _projection(self, piece: Piece, wide_gradient: Tensor) -> Tensor:
        """The projection [shorter side, rank] of this step, made anew where it is due."""
        state, plan = (
            piece.state,
            piece.state["plan"],
        )  # next step, steps between two, how many were alike, which
        size = len(wide_gradient), self.rank
        due, period, count = (float(value) for value in plan[:3])
        if float(piece.step) < due:
            return _decoded(state["projection"], state["projection_ends"], size, wide_gradient)
        left = torch.linalg.svd(wide_gradient, full_matrices=False).U[:, : self.rank]
        period = period or float(self.update_every)
        if due:
            before = _decoded(state["projection"], state["projection_ends"], size, wide_gradient)
            plan[3 + int(count) % self.window] = _alike(before, left)
            count += 1
            if count >= self.window and float(plan[3:].mean()) >= self.alike:
                period, count = 2 * period, 0.0
        plan[:3] = torch.tensor([float(piece.step) + period, period, count])
        codes, ends = _encoded(left)
        state["projection"].copy_(codes)
        state["projection_ends"].copy_(ends)
        return _decoded(codes, ends, size, wide_gradient)

    def _whole(self, piece: Piece, name: str, like: Tensor) -> Tensor:
        scales = piece.state.get(f"{name}_scales")
        return (
            piece.state[name]
            if scales is None
            else self.formats[name].decode(piece.state[name], scales, like)
        )

    def _keep(self, piece: Piece, name: str, value: Tensor) -> None:
        if f"{name}_scales" not in piece.state:
            return  # it was changed in place
        codes, scales = self.formats[name].encode(value)
        piece.state[name].copy_(codes)
        piece.state[f"{name}_scales"].copy_(scales)


def _alike(before: Tensor, now: Tensor) -> Tensor:
    """Mean |cosine| between the columns of two projections."""
    return torch.nn.functional.cosine_similarity(before, now, dim=0).abs().mean()


def _encoded(value: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of 4 bits, two a byte, and the least value and the step of each block."""
    blocks = -(-value.numel() // BLOCK)
    padded = torch.zeros(blocks * BLOCK, dtype=torch.float32, device=value.device)
    padded[: value.numel()] = value.reshape(-1)
    rows = padded.view(blocks, BLOCK)
    least = rows.amin(1, keepdim=True)
    step = (rows.amax(1, keepdim=True) - least) / LEVELS
    tiny = torch.finfo(torch.float32).tiny
    codes = ((rows - least) / step.clamp(min=tiny)).round_().to(torch.uint8).view(-1)
    return (codes[0::2] << 4) | codes[1::2], torch.cat([least, step], 1)


def _decoded(codes: Tensor, ends: Tensor, size: tuple[int, int], like: Tensor) -> Tensor:
    """The values again, in the dtype of `like`."""
    numbers = torch.stack((codes >> 4, codes & 15), dim=1).view(len(ends), BLOCK)
    rows = ends[:, :1] + numbers * ends[:, 1:]
    return rows.view(-1)[: size[0] * size[1]].view(size).to(like.dtype)
