"""What the two halves of a fused layer share: the residual stream around a branch, and the autograd node.

    out = h + m · post_norm(branch(pre_norm(h)))

Shape suffixes: T tokens, D hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.kernels.attention import Forest
from luthier.kernels.linears import Linears
from luthier.kernels.workspace import Workspace
from luthier.models.fused.norm import BoundNorm

Kept = list[Tensor | None]


@dataclass(frozen=True)
class Stream:
    """What every layer is told about the stream of tokens."""

    forest: Forest
    cos_TP: Tensor
    sin_TP: Tensor


@dataclass
class Residual:
    """The ends of a branch: its entry from the residual stream and its way back.

    `pre` and `post` are norms or None; `output` is the last linear layer of the branch.
    """

    pre: BoundNorm | None
    post: BoundNorm | None
    output: Linears
    multiplier: float
    workspace: Workspace

    def enter(self, hidden_TD: Tensor, spare: int) -> tuple[Tensor, Tensor | None]:
        """The branch's input with `spare` free columns behind it, [T, D + spare], and 1 / rms of the norm."""
        num_tokens, size = hidden_TD.shape
        wide_x = self.workspace.take("x", num_tokens, size + spare, like=hidden_TD)
        if self.pre is None:
            wide_x[:, :size] = hidden_TD
            return wide_x, None
        return wide_x, self.pre.forward(hidden_TD, wide_x[:, :size])

    def leave(self, hidden_TD: Tensor, wide_input: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Kept]:
        """The residual stream behind the branch, and what its backward needs: the output before the norm."""
        out_TD = torch.empty_like(hidden_TD)
        if self.post is None and self.multiplier == 1.0:
            return self.output.forward(wide_input, out_TD, add_to=hidden_TD, mask=mask), [None, None]
        branch_TD = torch.empty_like(hidden_TD) if self.post is not None else out_TD
        self.output.forward(wide_input, branch_TD, mask=mask)
        if self.post is None:
            return torch.add(hidden_TD, branch_TD, alpha=self.multiplier, out=out_TD), [None, None]
        rstd_T = self.post.forward(branch_TD, out_TD)
        return torch.add(hidden_TD, out_TD, alpha=self.multiplier, out=out_TD), [branch_TD, rstd_T]

    @property
    def numbers_kept(self) -> int:
        """How many numbers `leave` keeps for each token, the sums of squares aside."""
        return self.output.spare + (self.output.num_out if self.post is not None else 0)

    def leave_backward(
        self, grad_TD: Tensor, grad_input: Tensor, kept: Kept, mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Writes the gradient of the output layer's input.

        Returns that of its output, wide, for `output.parameter_gradients`; and that of the norm `post`.
        """
        num_tokens, size = grad_TD.shape
        wide_grad = self.workspace.take("grad_out", num_tokens, size + self.output.spare, like=grad_TD)
        grad_branch = wide_grad[:, :size]
        branch_TD, rstd_T = kept
        torch.mul(
            grad_TD, self.multiplier, out=grad_branch
        )  # a copy where it is 1: the columns behind are needed
        of_norm: list[Tensor] = []
        if self.post is not None:
            assert branch_TD is not None and rstd_T is not None
            of_norm = self.post.backward(grad_branch, branch_TD, rstd_T, grad_branch)
        self.output.input_gradient(wide_grad, grad_input, mask)
        return wide_grad, of_norm

    def enter_backward(
        self, grad_x: Tensor | None, grad_TD: Tensor, hidden_TD: Tensor, rstd_T: Tensor | None
    ) -> tuple[Tensor | None, list[Tensor]]:
        """The gradient of the stream before the branch, from those of the branch's input and of the stream behind."""
        if grad_x is None:
            return None, []
        if self.pre is None:
            return grad_TD + grad_x, []
        assert rstd_T is not None
        out_TD = torch.empty_like(hidden_TD)
        return out_TD, self.pre.backward(grad_x, hidden_TD, rstd_T, out_TD, add_to=grad_TD)


class Half:
    """One half of a layer: forward, what it keeps, backward.

    `parameters` are the tensors that are trained, at least now and then, in the order in which `backward` returns the
    gradients of those that require one at the time. With `recompute`, what the projections made is not kept but made
    again in the backward pass.
    """

    parameters: list[Tensor]
    projections: Linears
    residual: Residual
    recompute: bool = False

    def forward(self, hidden_TD: Tensor, stream: Stream, keep: bool) -> tuple[Tensor, Kept]:
        """The residual stream behind the half, and what backward needs besides `hidden_TD` (if `keep`)."""
        raise NotImplementedError

    def backward(
        self, grad_TD: Tensor, hidden_TD: Tensor, kept: Kept, stream: Stream, need_hidden: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients of `hidden_TD` (None unless needed) and of those `parameters` that require one."""
        raise NotImplementedError

    def numbers_kept(self, projected: bool) -> int:
        """How many numbers it keeps for each token besides `hidden_TD`; `projected`: also what was projected."""
        raise NotImplementedError

    def buffers(self, again: bool) -> dict[str, int]:
        """Numbers for each token in the buffers that it shares with other halves, by name; `again`: also where what
        was projected is not kept."""
        size = self.residual.output.num_out
        return {
            "x": size + self.projections.spare,
            "grad_out": size + self.residual.output.spare,
            "grad_x": size,
            "grad_projections": self.projections.num_out + self.projections.spare,
            "projections": self.projections.num_out * again,
        }

    def draw_masks(self, hidden_TD: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What drops inputs of the adapters in one pass: those of the projections and of the output layer."""
        return self.projections.draw_mask(hidden_TD), self.residual.output.draw_mask(hidden_TD)

    @property
    def bytes_of_masks(self) -> int:
        """What these masks keep for each token."""
        return sum(group.num_in for group in (self.projections, self.residual.output) if group.dropout)

    def __call__(self, hidden_TD: Tensor, stream: Stream) -> Tensor:
        trained = [p for p in self.parameters if p.requires_grad]  # those whose turn it is
        if torch.is_grad_enabled() and (hidden_TD.requires_grad or trained):
            return _Node.apply(hidden_TD, self, stream, *trained)  # pyright: ignore[reportReturnType]
        return self.forward(hidden_TD, stream, keep=False)[0]


class _Node(torch.autograd.Function):
    """A half in the autograd graph."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, half: Half, stream: Stream, *parameters: Tensor) -> Tensor:
        out_TD, kept = half.forward(hidden_TD, stream, keep=True)
        ctx.save_for_backward(hidden_TD, *kept)
        ctx.half, ctx.stream = half, stream
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_TD, *kept = ctx.saved_tensors
        grad_hidden, of_parameters = ctx.half.backward(
            grads[0], hidden_TD, kept, ctx.stream, ctx.needs_input_grad[0]
        )
        return grad_hidden, None, None, *of_parameters
