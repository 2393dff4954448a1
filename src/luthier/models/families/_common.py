"""What most families share."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from luthier.kernels.attention import AttentionRule
from luthier.models.fused.parts import Attention, Layer, Mlp, Norm

KINDS: dict[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}
"""The activations of kernels/gated.py under the names that configurations give them."""


def attention_rule(layer: Any, softcap: float | None = None) -> AttentionRule:
    """Scale and window of the layer's attention; some modules hold their window, others read the configuration's."""
    attention = layer.self_attn
    holder = attention if hasattr(attention, "sliding_window") else attention.config
    return AttentionRule(attention.scaling, getattr(holder, "sliding_window", None), softcap)


def separate_attention(
    layer: Any,
    *,
    rule: AttentionRule,
    pre_norm: Norm | None = None,
    post_norm: Norm | None = None,
    offset: float = 0.0,
    norm_each_head: bool = True,
    rotary: bool = True,
) -> Attention:
    """Attention with a projection each for query, key and value; norms of query and key where it has them."""
    module = layer.self_attn
    heads = module.config.num_attention_heads
    query_norm, key_norm = (
        Norm(f"self_attn.{name}", norm_eps(getattr(module, name)), offset) if hasattr(module, name) else None
        for name in ("q_norm", "k_norm")
    )
    return Attention(
        projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        output="self_attn.o_proj",
        num_heads=heads,
        num_key_heads=heads // module.num_key_value_groups,
        head_size=module.head_dim,
        rule=rule,
        pre_norm=pre_norm,
        post_norm=post_norm,
        query_norm=query_norm,
        key_norm=key_norm,
        norm_each_head=norm_each_head,
        rotary=rotary,
    )


def gated_mlp(layer: Any, *, pre_norm: Norm | None = None, post_norm: Norm | None = None) -> Mlp:
    """Separate projections for gate and up; the activation by its name in the configuration."""
    config = layer.mlp.config
    names = ("mlp.gate_proj", "mlp.up_proj")
    return Mlp(names, "mlp.down_proj", activation_kind(config), pre_norm, post_norm)


def activation_kind(config: Any) -> str:
    """The activation by the name that kernels/gated.py gives it; its own where it is not known there."""
    name = str(getattr(config, "hidden_activation", None) or config.hidden_act)
    return KINDS.get(name, name)


def norm_eps(module: Any) -> float:
    """The epsilon of an RMS norm, whatever it is called."""
    return module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps


def describers() -> dict[str, Callable[[Any], Layer]]:
    """For each class of decoder layer that a family names, what describes it."""
    package = importlib.import_module(__package__ or "")
    names = [found.name for found in pkgutil.iter_modules(package.__path__) if not found.name.startswith("_")]
    families = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return {layer: family.describe for family in families for layer in family.LAYERS}
