"""Granite 3: Llama with four multipliers."""

from typing import Any

from luthier.export.gguf.architectures._common import Facts, decoder
from luthier.export.gguf.architectures._common import paired_projections as tensors

NAME = "granite"

__all__ = ["NAME", "facts", "tensors"]


def facts(config: Any) -> Facts:
    """Llama's, and the multipliers."""
    return decoder(config) | {
        "attention.scale": float(config.attention_multiplier),
        "embedding_scale": float(config.embedding_multiplier),
        "residual_scale": float(config.residual_multiplier),
        "logit_scale": float(config.logits_scaling),
    }
