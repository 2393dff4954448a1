"""Llama and what is built like it: Mistral, Qwen 2 (with biases), Qwen 3 (with norms of query and key), SmolLM.

SmolLM 3 leaves the rotation out of every fourth layer; Granite scales what it adds to the residual stream.
"""

from typing import Any

from luthier.models.families._common import attention_rule, gated_mlp, norm_eps, separate_attention
from luthier.models.fused.parts import Layer, Norm

LAYERS = (
    "GraniteDecoderLayer",
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
    "SmolLM3DecoderLayer",
)


def describe(layer: Any) -> Layer:
    """The parts of one layer."""
    eps = norm_eps(layer.input_layernorm)
    attention = separate_attention(
        layer,
        rule=attention_rule(layer),
        pre_norm=Norm("input_layernorm", eps),
        rotary=bool(getattr(layer.self_attn, "use_rope", True)),
    )
    return Layer(
        attention=attention,
        mlp=gated_mlp(layer, pre_norm=Norm("post_attention_layernorm", eps)),
        multiplier=getattr(layer, "residual_multiplier", 1.0),
        dropouts=(layer.self_attn.attention_dropout,),
    )
