"""OLMo 2 and 3: a norm behind each branch instead of before it, and norms over all heads of query and key."""

from typing import Any

from luthier.models.families._common import attention_rule, gated_mlp, norm_eps, separate_attention
from luthier.models.fused.parts import Layer, Norm

LAYERS = ("Olmo2DecoderLayer", "Olmo3DecoderLayer")


def describe(layer: Any) -> Layer:
    """The parts of one layer."""
    eps = norm_eps(layer.post_attention_layernorm)
    attention = separate_attention(
        layer,
        rule=attention_rule(layer),
        post_norm=Norm("post_attention_layernorm", eps),
        norm_each_head=False,
    )
    mlp = gated_mlp(layer, post_norm=Norm("post_feedforward_layernorm", eps))
    return Layer(attention, mlp, dropouts=(layer.self_attn.attention_dropout,))
