"""Phi-3 and Phi-4: one projection for query, key and value, one for gate and up."""

from typing import Any

from luthier.models.families._common import activation_kind, attention_rule, norm_eps
from luthier.models.fused.parts import Attention, Layer, Mlp, Norm

LAYERS = ("Phi3DecoderLayer",)


def describe(layer: Any) -> Layer:
    """The parts of one layer."""
    module, config = layer.self_attn, layer.self_attn.config
    eps = norm_eps(layer.input_layernorm)
    attention = Attention(
        projections=("self_attn.qkv_proj",),
        output="self_attn.o_proj",
        num_heads=config.num_attention_heads,
        num_key_heads=config.num_key_value_heads,
        head_size=module.head_dim,
        rule=attention_rule(layer),
        pre_norm=Norm("input_layernorm", eps),
    )
    mlp = Mlp(
        ("mlp.gate_up_proj",),
        "mlp.down_proj",
        activation_kind(config),
        pre_norm=Norm("post_attention_layernorm", eps),
    )
    dropouts = module.attention_dropout, layer.resid_attn_dropout.p, layer.resid_mlp_dropout.p
    return Layer(attention, mlp, dropouts=dropouts)
