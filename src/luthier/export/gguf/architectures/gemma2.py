"""Gemma 2."""

from typing import Any

from luthier.errors import ModelError
from luthier.export.gguf.architectures._common import Facts, decoder
from luthier.export.gguf.architectures._common import norms_with_one as tensors

NAME = "gemma2"

__all__ = ["NAME", "facts", "scale_of", "tensors"]


def scale_of(config: Any, whole_layers: int) -> None:
    """Checks the scale of attention, which the file does not hold: llama.cpp takes that of heads, but for one size
    (told by its number of layers) that of hidden size / heads.

    Raises ModelError if this model has another.
    """
    size = (
        config.hidden_size // config.num_attention_heads
        if config.num_hidden_layers == whole_layers
        else config.head_dim
    )
    if config.query_pre_attn_scalar != size:
        raise ModelError(
            f"llama.cpp divides by the root of {size} in the attention of this Gemma, and the model by that of "
            f"{config.query_pre_attn_scalar} (query_pre_attn_scalar), so it would answer differently there."
        )


def facts(config: Any) -> Facts:
    """With caps on scores and logits, and the window of every other layer."""
    scale_of(config, whole_layers=46)
    return decoder(config) | {
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        "attention.sliding_window": config.sliding_window,
    }
