"""Layers whose feed-forward half is a mixture of experts; their attention is Llama's or Qwen 3's.

The experts go through transformers' own kernels (its `experts_implementation`).
"""

from typing import Any

from luthier.models.families._common import attention_rule, gated_mlp, norm_eps, separate_attention
from luthier.models.fused.parts import Layer, Norm, OwnMlp

LAYERS = ("MixtralDecoderLayer", "Qwen2MoeDecoderLayer", "Qwen3MoeDecoderLayer")


def describe(layer: Any) -> Layer:
    """The parts of one layer. Some models have ordinary layers among those with experts."""
    eps = norm_eps(layer.input_layernorm)
    attention = separate_attention(layer, rule=attention_rule(layer), pre_norm=Norm("input_layernorm", eps))
    if hasattr(layer.mlp, "gate_proj"):
        mlp = gated_mlp(layer, pre_norm=Norm("post_attention_layernorm", eps))
    else:
        mlp = OwnMlp("mlp", "post_attention_layernorm", layer.self_attn.config.num_experts_per_tok)
    return Layer(attention, mlp, dropouts=(layer.self_attn.attention_dropout,))
