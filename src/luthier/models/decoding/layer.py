"""One decoder layer for a stream of tokens, whatever attention they need: decoding's, or that of reading a prompt.

Intermediate results live in a workspace that all layers share. The residual stream is changed in place.

Shape suffixes: T tokens, K inputs, N outputs, H query heads, G key heads, D head size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from luthier.kernels import gated, rms_norm, rotary, skinny_linear
from luthier.kernels.quant.base import Stored
from luthier.kernels.workspace import Workspace
from luthier.models.decoding.bound import (
    BoundAttention,
    BoundLayer,
    BoundLinear,
    BoundMlp,
    BoundNorm,
    BoundOwnMlp,
)

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Attention of query [T, H, D] over the cache and the stream's own key and value [T, G, D], into the last [T, H, D]."""


def run_layer(
    hidden_TK: Tensor, layer: BoundLayer, tables: tuple[Tensor, Tensor], attend: Attend, workspace: Workspace
) -> None:
    """Both halves. `tables`: cosines and sines of the tokens' positions, [T, rotated features] each."""
    _attention_half(hidden_TK, layer.attention, layer.multiplier, tables, attend, workspace)
    if isinstance(layer.mlp, BoundOwnMlp):
        _own_mlp_half(hidden_TK, layer.mlp, layer.multiplier, workspace)
    else:
        _mlp_half(hidden_TK, layer.mlp, layer.multiplier, workspace)


def linear(x_TK: Tensor, bound: BoundLinear, out_TN: Tensor, workspace: Workspace, *, scale: float = 1.0,
           add: bool = False) -> Tensor:  # fmt: skip
    """scale · (the layer's output), written into `out_TN` or added to it."""
    low_TR = None
    if bound.a_RK is not None:
        low_TR = workspace.take("low", len(x_TK), len(bound.a_RK), like=x_TK)
        skinny_linear.forward(x_TK, bound.a_RK, scale=bound.scale, out=low_TR)
    weight_NK = bound.weight_NK
    if isinstance(weight_NK, Stored):
        like = torch.empty(0, dtype=weight_NK.dtype, device=weight_NK.device)
        weight_NK = weight_NK.write(workspace.take("decoded", *weight_NK.shape, like=like))
    return skinny_linear.forward(
        x_TK, weight_NK, bound.bias_N, low_MR=low_TR, b_NR=bound.b_NR, scale=scale, out=out_TN, add=add
    )


def _attention_half(
    hidden_TK: Tensor,
    half: BoundAttention,
    multiplier: float,
    tables: tuple[Tensor, Tensor],
    attend: Attend,
    workspace: Workspace,
) -> None:
    num, heads, key_heads, size = len(hidden_TK), half.num_heads, half.num_key_heads, half.head_size
    x_TK = _normed(hidden_TK, half.pre_norm, workspace)
    packed = workspace.take("packed", num, (heads + 2 * key_heads) * size, like=hidden_TK)
    _project(x_TK, half.projections, packed, workspace)
    _norm_heads(packed[:, : heads * size], half.query_norm, half, heads)
    _norm_heads(packed[:, heads * size : -key_heads * size], half.key_norm, half, key_heads)
    heads_THD = packed.view(num, heads + 2 * key_heads, size)
    turned_THD = heads_THD[:, : heads + key_heads]
    if half.rotary:
        rotary.rotate(turned_THD, *tables, out=turned_THD)
    mixed_THD = workspace.take("mixed", num, heads, size, like=hidden_TK)
    attend(turned_THD[:, :heads], turned_THD[:, heads:], heads_THD[:, heads + key_heads :], mixed_THD)
    _add_output(hidden_TK, mixed_THD.view(num, -1), half.output, half.post_norm, multiplier, workspace)


def _mlp_half(hidden_TK: Tensor, half: BoundMlp, multiplier: float, workspace: Workspace) -> None:
    x_TK = _normed(hidden_TK, half.pre_norm, workspace)
    width = sum(bound.num_out for bound in half.projections)
    packed = workspace.take("packed", len(x_TK), width, like=hidden_TK)
    _project(x_TK, half.projections, packed, workspace)
    gate, up = packed[:, : width // 2], packed[:, width // 2 :]
    gated.forward(gate, up, half.activation, out=gate)
    _add_output(hidden_TK, gate, half.output, half.post_norm, multiplier, workspace)


def _own_mlp_half(hidden_TK: Tensor, half: BoundOwnMlp, multiplier: float, workspace: Workspace) -> None:
    branch = half.module(_normed(hidden_TK, half.pre_norm, workspace).to(half.dtype)[None])
    branch_TK = branch[0] if isinstance(branch, Tensor) else branch[0][0]  # some give their routing, too
    hidden_TK.add_(branch_TK, alpha=multiplier)


def _normed(x_TK: Tensor, norm: BoundNorm | None, workspace: Workspace) -> Tensor:
    if norm is None:
        return x_TK
    out = workspace.take("normed", *x_TK.shape, like=x_TK)
    return rms_norm.forward(x_TK, norm.weight_D, norm.eps, norm.offset, out=out)[0]


def _project(x_TK: Tensor, layers: Sequence[BoundLinear], out_TN: Tensor, workspace: Workspace) -> None:
    """The layers' outputs side by side."""
    start = 0
    for bound in layers:
        linear(x_TK, bound, out_TN[:, start : start + bound.num_out], workspace)
        start += bound.num_out


def _norm_heads(x_TN: Tensor, norm: BoundNorm | None, half: BoundAttention, heads: int) -> None:
    if norm is None:
        return
    x = x_TN.unflatten(1, (heads, half.head_size)) if half.norm_each_head else x_TN
    rms_norm.forward(x, norm.weight_D, norm.eps, norm.offset, out=x)


def _add_output(
    hidden_TK: Tensor,
    x: Tensor,
    output: BoundLinear,
    norm: BoundNorm | None,
    multiplier: float,
    workspace: Workspace,
) -> None:
    """hidden += multiplier · norm(output(x))"""
    if norm is None:
        linear(x, output, hidden_TK, workspace, scale=multiplier, add=True)
        return
    y = linear(x, output, workspace.take("branch", *hidden_TK.shape, like=hidden_TK), workspace)
    rms_norm.forward(y, norm.weight_D, norm.eps, norm.offset, out=y)
    torch.add(hidden_TK, y, alpha=multiplier, out=hidden_TK)
