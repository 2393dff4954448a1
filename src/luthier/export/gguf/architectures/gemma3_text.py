"""Gemma 3 without its eyes."""

from typing import Any

from luthier.errors import ModelError
from luthier.export.gguf.architectures._common import Facts, decoder, window_pattern
from luthier.export.gguf.architectures._common import norms_with_one as tensors
from luthier.export.gguf.architectures.gemma2 import scale_of

NAME = "gemma3"
PERIOD = 6
"""Every sixth layer sees everything; llama.cpp knows no other pattern of Gemma 3."""

__all__ = ["NAME", "facts", "tensors"]


def facts(config: Any) -> Facts:
    """With the window of most layers and the base of their rotary embedding."""
    scale_of(config, whole_layers=62)
    expected = [(layer + 1) % PERIOD != 0 for layer in range(config.num_hidden_layers)]
    if window_pattern(config) != expected:
        raise ModelError(
            f"llama.cpp expects every {PERIOD}th layer of Gemma 3 to see everything and the others a window; this "
            "model's layer_types are others, so it would answer differently there."
        )
    found = decoder(config) | {
        "attention.sliding_window": config.sliding_window,
        "rope.freq_base_swa": float(config.rope_parameters["sliding_attention"]["rope_theta"]),
    }
    if config.final_logit_softcapping:
        found["final_logit_softcapping"] = config.final_logit_softcapping
    return found
