"""The attention half: out = h + m · post_norm(output(attention(q, k, v))), q, k, v from pre_norm(h).

Kept for the backward pass: the projections (after rotation, or before the norms of query and key where there are
any) unless they are made again, the attention's output and log-sum-exp, and the rank-wide products of the adapters.

Shape suffixes: T tokens, D hidden size, H query heads, K key heads, M all outputs of the projections, P rotated
dimensions.
"""

from dataclasses import dataclass

from torch import Tensor

from luthier.kernels import rotary
from luthier.kernels.attention import attend, attend_backward
from luthier.kernels.linears import Linears
from luthier.models.fused.half import Half, Kept, Residual, Stream
from luthier.models.fused.norm import BoundNorm
from luthier.models.fused.parts import Attention


@dataclass
class AttentionHalf(Half):
    """The half of one layer."""

    spec: Attention
    residual: Residual
    projections: Linears
    query_norm: BoundNorm | None = None
    key_norm: BoundNorm | None = None
    recompute: bool = False

    def __post_init__(self) -> None:
        def trained(*norms: BoundNorm | None) -> list[Tensor]:
            return [norm.weight_D for norm in norms if norm is not None and norm.trained]

        self.parameters = [
            *trained(self.residual.pre),
            *self.projections.parameters,
            *trained(self.query_norm, self.key_norm),
            *self.residual.output.parameters,
            *trained(self.residual.post),
        ]

    def forward(self, hidden_TD: Tensor, stream: Stream, keep: bool) -> tuple[Tensor, Kept]:
        wide_x, _ = self.residual.enter(hidden_TD, self.projections.spare)
        masks = mask_x, mask_out = self.draw_masks(hidden_TD)
        qkv_TM = self._project(wide_x, keep and not self.recompute, mask_x)
        query, key, value, _ = self._heads(qkv_TM, stream, fresh=True)
        wide_out = self._wide_out(qkv_TM, keep)
        out_THd = self._as_heads(wide_out[:, : self._width], self.spec.num_heads)
        _, logsumexp = attend(query, key, value, stream.forest, self.spec.rule, out=out_THd)
        out_TD, ends = self.residual.leave(hidden_TD, wide_out, mask_out)
        if not keep:
            return out_TD, []
        if self.recompute:
            return out_TD, [*masks, None, None, wide_out, logsumexp, *ends]
        low_x = wide_x[:, self.projections.num_in :].clone()
        return out_TD, [*masks, qkv_TM, low_x, wide_out, logsumexp, *ends]

    def backward(
        self, grad_TD: Tensor, hidden_TD: Tensor, kept: Kept, stream: Stream, need_hidden: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        mask_x, mask_out, qkv_TM, low_x, wide_out, logsumexp, *ends = kept
        assert wide_out is not None and logsumexp is not None
        wide_x, rstd_T = self.residual.enter(hidden_TD, self.projections.spare)
        fresh = qkv_TM is None
        if qkv_TM is None:
            qkv_TM = self._project(wide_x, keep=False, mask=mask_x)
        elif low_x is not None:
            wide_x[:, self.projections.num_in :] = low_x
        query, key, value, rstds = self._heads(qkv_TM, stream, fresh)
        take = self.residual.workspace.take

        grad_out = take("grad_attention", len(hidden_TD), self._width, like=hidden_TD)
        wide_grad_out, of_post = self.residual.leave_backward(grad_TD, grad_out, ends, mask_out)
        of_output = self.residual.output.parameter_gradients(wide_grad_out, wide_out, mask=mask_out)
        wide_grad = take(
            "grad_projections",
            len(hidden_TD),
            self.projections.num_out + self.projections.spare,
            like=hidden_TD,
        )
        grad_q, grad_k, grad_v = self._split(wide_grad[:, : self.projections.num_out])
        attend_backward(
            self._as_heads(grad_out, self.spec.num_heads),
            query,
            key,
            value,
            self._as_heads(wide_out[:, : self._width], self.spec.num_heads),
            logsumexp,
            stream.forest,
            self.spec.rule,
            query_grad=grad_q,
            key_grad=grad_k,
            value_grad=grad_v,
        )
        of_norms = self._heads_backward(wide_grad, qkv_TM, rstds, stream)
        trains_pre = self.residual.pre is not None and self.residual.pre.trained
        grad_x = take("grad_x", *hidden_TD.shape, like=hidden_TD) if need_hidden or trains_pre else None
        self.projections.input_gradient(wide_grad, grad_x, mask_x)
        of_projections = self.projections.parameter_gradients(wide_grad, wide_x, mask=mask_x)
        grad_hidden, of_pre = self.residual.enter_backward(grad_x, grad_TD, hidden_TD, rstd_T)
        return grad_hidden, [*of_pre, *of_projections, *of_norms, *of_output, *of_post]

    def numbers_kept(self, projected: bool) -> int:
        of_attention = self._width + self.spec.num_heads  # its output and log-sum-exp
        return (
            self.residual.numbers_kept
            + of_attention
            + (self.projections.num_out + self.projections.spare) * projected
        )

    def buffers(self, again: bool) -> dict[str, int]:
        rotated = (self.spec.num_heads + self.spec.num_key_heads) * self.spec.head_size
        own = {"grad_attention": self._width, "heads": rotated * (self.query_norm is not None)}
        return (
            super().buffers(again) | own | {"attention": (self._width + self.residual.output.spare) * again}
        )

    @property
    def _width(self) -> int:
        return self.spec.num_heads * self.spec.head_size

    def _as_heads(self, x: Tensor, num_heads: int) -> Tensor:
        return x.unflatten(1, (num_heads, self.spec.head_size))

    def _split(self, qkv_TM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of query, key and value, [T, heads, size]."""
        keys = self.spec.num_key_heads * self.spec.head_size
        query, key, value = qkv_TM.split((self._width, keys, keys), 1)
        num_keys = self.spec.num_key_heads
        return (
            self._as_heads(query, self.spec.num_heads),
            self._as_heads(key, num_keys),
            self._as_heads(value, num_keys),
        )

    def _project(self, wide_x: Tensor, keep: bool, mask: Tensor | None) -> Tensor:
        size = len(wide_x), self.projections.num_out
        qkv_TM = (
            wide_x.new_empty(size)
            if keep
            else self.residual.workspace.take("projections", *size, like=wide_x)
        )
        return self.projections.forward(wide_x, qkv_TM, mask=mask)

    def _wide_out(self, qkv_TM: Tensor, keep: bool) -> Tensor:
        size = len(qkv_TM), self._width + self.residual.output.spare
        return (
            qkv_TM.new_empty(size) if keep else self.residual.workspace.take("attention", *size, like=qkv_TM)
        )

    def _heads(
        self, qkv_TM: Tensor, stream: Stream, fresh: bool
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Query and key as attention reads them, the value, and 1 / rms of their norms.

        Without norms the rotation is done in place, once, while the projections are `fresh`.
        """
        query, key, value = self._split(qkv_TM)
        num_rotated = self.spec.num_heads + self.spec.num_key_heads
        together = qkv_TM[:, : num_rotated * self.spec.head_size]  # query and key lie side by side
        rstds: tuple[Tensor, ...] = ()
        if self.query_norm is not None and self.key_norm is not None:
            together = self.residual.workspace.take("heads", *together.shape, like=qkv_TM)
            normed = together.split((self._width, together.shape[1] - self._width), 1)
            pairs = zip((self.query_norm, self.key_norm), (query, key), normed, strict=True)
            rstds = tuple(norm.forward(self._for_norm(raw), self._for_norm(out)) for norm, raw, out in pairs)
            query, key = (self._as_heads(x, x.shape[1] // self.spec.head_size) for x in normed)
            fresh = True
        if self.spec.rotary and fresh:
            rotary.rotate(x := self._as_heads(together, num_rotated), stream.cos_TP, stream.sin_TP, out=x)
        return query, key, value, rstds

    def _heads_backward(
        self, wide_grad: Tensor, qkv_TM: Tensor, rstds: tuple[Tensor, ...], stream: Stream
    ) -> list[Tensor]:
        """From gradients of rotated to those of projected query and key, in place; those of the norms' weights."""
        num_rotated = self.spec.num_heads + self.spec.num_key_heads
        together = self._as_heads(wide_grad[:, : num_rotated * self.spec.head_size], num_rotated)
        if self.spec.rotary:
            rotary.rotate(together, stream.cos_TP, stream.sin_TP, inverse=True, out=together)
        gradients: list[Tensor] = []
        norms = [norm for norm in (self.query_norm, self.key_norm) if norm is not None]
        grads, raws = self._split(wide_grad[:, : qkv_TM.shape[1]])[:2], self._split(qkv_TM)[:2]
        for norm, grad, raw, rstd in zip(norms, grads, raws, rstds, strict=False):
            flat = self._for_norm(grad)
            gradients += norm.backward(flat, self._for_norm(raw), rstd, flat)
        return gradients

    def _for_norm(self, x: Tensor) -> Tensor:
        """[T, heads, size] for norms of each head, [T, heads · size] for norms over all heads; from either."""
        if self.spec.norm_each_head:
            return x if x.dim() == 3 else self._as_heads(x, x.shape[1] // self.spec.head_size)
        return x if x.dim() == 2 else x.flatten(1)
