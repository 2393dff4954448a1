"""What most architectures share: the numbers that llama.cpp asks for, and tables of rotary frequencies."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError

Facts = dict[str, Any]
"""Keys of the file behind the architecture's name, such as `attention.head_count`: a number, truth, text or list."""

ROPE_FACTORS = "rope_freqs.weight"


def decoder(config: Any) -> Facts:
    """Sizes of a decoder of attention and gated feed-forward layers with rotary positions."""
    size = head_size(config)
    return {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads or config.num_attention_heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": size,
        **rope(config),
    }


def head_size(config: Any) -> int:
    """Of queries, keys and values."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope_parameters(config: Any) -> dict[str, Any]:
    """Those of all layers, or of the layers with full attention where they differ."""
    found = dict(config.rope_parameters or {})
    return dict(found.get("full_attention", found))


def rope(config: Any) -> Facts:
    """Base and scaling of the rotary embedding.

    Raises ModelError for a scaling that llama.cpp does not compute.
    """
    parameters = rope_parameters(config)
    kind = parameters.get("rope_type", "default")
    facts: Facts = {"rope.freq_base": float(parameters["rope_theta"])}
    if kind in ("linear", "yarn"):
        facts |= {"rope.scaling.type": kind, "rope.scaling.factor": float(parameters["factor"])}
    if kind == "yarn" and (original := parameters.get("original_max_position_embeddings")):
        facts["rope.scaling.original_context_length"] = original
    if kind not in ("default", "linear", "yarn", "llama3", "longrope"):
        raise ModelError(
            f"llama.cpp has no rotary embedding of the kind {kind}, so this model cannot become a GGUF."
        )
    return facts


def llama3_factors(config: Any) -> Iterator[tuple[str, Tensor]]:
    """By how much each rotary frequency is divided (rope_type llama3), as a tensor of head_size / 2; else nothing.

    Wavelengths under context / high_freq_factor stay, those over context / low_freq_factor are divided by `factor`,
    and between them 1 / factor goes to 1 in proportion to context / wavelength.
    """
    parameters = rope_parameters(config)
    if parameters.get("rope_type") != "llama3":
        return
    size, base, factor = head_size(config), parameters["rope_theta"], parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    waves = parameters["original_max_position_embeddings"] / (
        2 * math.pi * base ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    )
    kept = ((waves - low) / (high - low)).clamp(0, 1)
    yield ROPE_FACTORS, (1 / (kept + (1 - kept) / factor)).float()


def paired(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of a query or key projection in the order of llama.cpp's own Llama: i and i + D/2 of a head, which rotate
    together, stand side by side. weight: [H·D, K] or [H·D].
    """
    rows = weight.shape[0] // num_heads
    halves = weight.reshape(num_heads, 2, rows // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def paired_projections(config: Any, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """`paired` for query and key; everything else as it is."""
    if ".q_proj." in name:
        tensor = paired(tensor, config.num_attention_heads)
    elif ".k_proj." in name:
        tensor = paired(tensor, config.num_key_value_heads or config.num_attention_heads)
    yield name, tensor


def norms_with_one(config: Any, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Norms that multiply by 1 + weight, as plain weights."""
    yield name, tensor.float() + 1 if name.endswith("norm.weight") else tensor


def unlimited(config: Any, facts: Facts) -> Facts:
    """For an architecture whose sliding window llama.cpp does not compute: no longer context than the window."""
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        facts["context_length"] = min(facts["context_length"], window)
    return facts


def window_pattern(config: Any) -> list[bool]:
    """For each layer whether it attends to a window only."""
    return [kind == "sliding_attention" for kind in config.layer_types]
