"""What a decoder layer is made of, as far as the fused layer must know. Filled in by the files in families/.

A layer is two halves, each reading the residual stream h and adding to it:

    h + m · post_norm(output(attention(rotary(qk_norm(projections(pre_norm(h)))))))
    h + m · post_norm(output(activation(gate) * up))         gate, up = projections(pre_norm(h))

Absent norms are the identity; m is the residual multiplier. Modules are named by their path in the layer, and
read when the layer is fused.
"""

from dataclasses import dataclass, field

from luthier.kernels.attention import AttentionRule


@dataclass(frozen=True)
class Norm:
    """An RMS norm: x / √(mean(x²) + eps) · (offset + weight)."""

    name: str
    eps: float
    offset: float = 0.0


@dataclass(frozen=True)
class Attention:
    """The attention half."""

    projections: tuple[str, ...]
    """Query, key and value, or one layer whose outputs are these three in this order."""
    output: str
    num_heads: int
    num_key_heads: int
    head_size: int
    rule: AttentionRule
    pre_norm: Norm | None = None
    post_norm: Norm | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    norm_each_head: bool = True
    """Query and key are normalised head by head; otherwise over all heads together."""
    rotary: bool = True


@dataclass(frozen=True)
class Mlp:
    """The gated feed-forward half."""

    projections: tuple[str, ...]
    """Gate and up, or one layer whose outputs are these two in this order."""
    output: str
    activation: str
    """One of kernels.gated.KINDS."""
    pre_norm: Norm | None = None
    post_norm: Norm | None = None


@dataclass(frozen=True)
class OwnMlp:
    """A feed-forward half of another kind, such as a mixture of experts, left to the layer's own modules.

    h + module(norm(h))
    """

    module: str
    norm: str
    experts_per_token: int = 1


@dataclass(frozen=True)
class Layer:
    """A decoder layer."""

    attention: Attention
    mlp: Mlp | OwnMlp
    multiplier: float = 1.0
    dropouts: tuple[float, ...] = field(default=())
    """Dropout probabilities that the layer applies in training; the fused layer has none."""
