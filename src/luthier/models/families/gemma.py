"""Gemma 1, 2 and 3: norms that add 1 to their weight; from Gemma 2 on a norm behind each branch, too."""

from typing import Any

from luthier.models.families._common import attention_rule, gated_mlp, norm_eps, separate_attention
from luthier.models.fused.parts import Layer, Norm

LAYERS = ("GemmaDecoderLayer", "Gemma2DecoderLayer", "Gemma3DecoderLayer")


def describe(layer: Any) -> Layer:
    """The parts of one layer."""
    eps = norm_eps(layer.input_layernorm)

    def norm(name: str) -> Norm:
        return Norm(name, eps, offset=1.0)

    behind = hasattr(layer, "post_feedforward_layernorm")
    softcap = getattr(layer.self_attn, "attn_logit_softcapping", None)
    attention = separate_attention(
        layer,
        rule=attention_rule(layer, softcap),
        pre_norm=norm("input_layernorm"),
        post_norm=norm("post_attention_layernorm") if behind else None,
        offset=1.0,
    )
    mlp = gated_mlp(
        layer,
        pre_norm=norm("pre_feedforward_layernorm" if behind else "post_attention_layernorm"),
        post_norm=norm("post_feedforward_layernorm") if behind else None,
    )
    return Layer(attention, mlp, dropouts=(layer.self_attn.attention_dropout,))
