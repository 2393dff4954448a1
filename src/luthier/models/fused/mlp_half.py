"""The feed-forward half: out = h + m · post_norm(down(act(gate) · up)), gate and up from pre_norm(h).

Kept for the backward pass: gate and up (unless they are made again) and the rank-wide products of the adapters.
The norm and the product act(gate) · up are made again: one pass over memory, no matrix product.

Shape suffixes: T tokens, D hidden size, I intermediate size.
"""

from dataclasses import dataclass

from torch import Tensor

from luthier.kernels import gated
from luthier.kernels.linears import Linears
from luthier.models.fused.half import Half, Kept, Residual, Stream


@dataclass
class MlpHalf(Half):
    """The half of one layer."""

    residual: Residual
    projections: Linears
    activation: str
    recompute: bool = False

    def __post_init__(self) -> None:
        pre, post = self.residual.pre, self.residual.post
        norms = [[norm.weight_D] if norm is not None and norm.trained else [] for norm in (pre, post)]
        self.parameters = [
            *norms[0],
            *self.projections.parameters,
            *self.residual.output.parameters,
            *norms[1],
        ]

    def forward(self, hidden_TD: Tensor, stream: Stream, keep: bool) -> tuple[Tensor, Kept]:
        wide_x, _ = self.residual.enter(hidden_TD, self.projections.spare)
        masks = mask_x, mask_out = self.draw_masks(hidden_TD)
        gate_up = self._gate_up(wide_x, keep and not self.recompute, mask_x)
        wide_product = self._wide_product(gate_up)
        gate, up = gate_up.chunk(2, 1)
        gated.forward(gate, up, self.activation, out=wide_product[:, : gate.shape[1]])
        out_TD, ends = self.residual.leave(hidden_TD, wide_product, mask_out)
        if not keep:
            return out_TD, []
        low_product = wide_product[:, gate_up.shape[1] // 2 :].clone()
        if self.recompute:
            return out_TD, [*masks, None, None, low_product, *ends]
        low_x = wide_x[:, self.projections.num_in :].clone()
        return out_TD, [*masks, gate_up, low_x, low_product, *ends]

    def backward(
        self, grad_TD: Tensor, hidden_TD: Tensor, kept: Kept, stream: Stream, need_hidden: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        mask_x, mask_out, gate_up, low_x, low_product, *ends = kept
        wide_x, rstd_T = self.residual.enter(hidden_TD, self.projections.spare)
        if gate_up is None:
            gate_up = self._gate_up(wide_x, keep=False, mask=mask_x)
        elif low_x is not None:
            wide_x[:, self.projections.num_in :] = low_x
        num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
        take = self.residual.workspace.take

        grad_product = take("grad_product", num_tokens, size, like=hidden_TD)
        wide_grad_out, of_post = self.residual.leave_backward(grad_TD, grad_product, ends, mask_out)

        wide_product = self._wide_product(gate_up)
        assert low_product is not None
        wide_product[:, size:] = low_product
        wide_grad = take("grad_projections", num_tokens, 2 * size + self.projections.spare, like=hidden_TD)
        gate, up = gate_up.chunk(2, 1)
        gated.backward(
            grad_product,
            gate,
            up,
            self.activation,
            gate_grad=wide_grad[:, :size],
            up_grad=wide_grad[:, size : 2 * size],
            product=wide_product[:, :size],
        )
        of_output = self.residual.output.parameter_gradients(wide_grad_out, wide_product, mask=mask_out)
        grad_x = (
            take("grad_x", *hidden_TD.shape, like=hidden_TD) if need_hidden or self._trains_pre() else None
        )
        self.projections.input_gradient(wide_grad, grad_x, mask_x)
        of_projections = self.projections.parameter_gradients(wide_grad, wide_x, gate_up, mask_x)
        grad_hidden, of_pre = self.residual.enter_backward(grad_x, grad_TD, hidden_TD, rstd_T)
        return grad_hidden, [*of_pre, *of_projections, *of_output, *of_post]

    def numbers_kept(self, projected: bool) -> int:
        return self.residual.numbers_kept + (self.projections.num_out + self.projections.spare) * projected

    def buffers(self, again: bool) -> dict[str, int]:
        size = self.residual.output.num_in
        own = {"product": size + self.residual.output.spare, "grad_product": size}
        return super().buffers(again) | own

    def _trains_pre(self) -> bool:
        return self.residual.pre is not None and self.residual.pre.trained

    def _gate_up(self, wide_x: Tensor, keep: bool, mask: Tensor | None) -> Tensor:
        size = len(wide_x), self.projections.num_out
        gate_up = (
            wide_x.new_empty(size)
            if keep
            else self.residual.workspace.take("projections", *size, like=wide_x)
        )
        return self.projections.forward(wide_x, gate_up, mask=mask)

    def _wide_product(self, gate_up: Tensor) -> Tensor:
        width = gate_up.shape[1] // 2 + self.residual.output.spare
        return self.residual.workspace.take("product", len(gate_up), width, like=gate_up)
