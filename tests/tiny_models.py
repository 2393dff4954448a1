"""Small random models of the shapes that matter, built from their configuration: no download, seeded, fp32."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 97


def build(model_type: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model of a few thousand weights; every bias and norm is random too, so that none can be forgotten."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **overrides,
    }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **values)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "bias" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)  # far from the linear regime, so that a wrong order of operations shows
    return model.eval()


def tiny_llama(**overrides: Any) -> PreTrainedModel:
    """Llama shape, with a head of its own."""
    return build("llama", **{"tie_word_embeddings": False, **overrides})


def tiny_smollm(**overrides: Any) -> PreTrainedModel:
    """Llama shape with tied embeddings, as SmolLM2 has."""
    return build("llama", **{"tie_word_embeddings": True, **overrides})


def tiny_qwen3(**overrides: Any) -> PreTrainedModel:
    """Qwen3 shape: norms on queries and keys."""
    return build("qwen3", **{"tie_word_embeddings": True, **overrides})


def tiny_mistral(**overrides: Any) -> PreTrainedModel:
    """Mistral shape with a sliding window shorter than the tests' documents."""
    return build("mistral", **{"sliding_window": 6, **overrides})


def tiny_gemma2(**overrides: Any) -> PreTrainedModel:
    """Gemma-2 shape: soft caps on attention and logits, alternating sliding windows."""
    return build(
        "gemma2",
        **{"sliding_window": 6, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0, **overrides},
        final_logit_softcapping=3.0,
    )


def tiny_gemma3(**overrides: Any) -> PreTrainedModel:
    """Gemma-3 text shape: local and global layers with their own rotary bases."""
    return build("gemma3_text", **{"sliding_window": 6, "query_pre_attn_scalar": 8, **overrides})


def tiny_phi3(**overrides: Any) -> PreTrainedModel:
    """Phi-3 shape: fused projections."""
    return build("phi3", **{"original_max_position_embeddings": 256, **overrides})


def tiny_granite(**overrides: Any) -> PreTrainedModel:
    """Granite shape: multipliers on embeddings, residuals, attention and logits."""
    return build(
        "granite",
        **{"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, **overrides},
    )


def tiny_cohere(**overrides: Any) -> PreTrainedModel:
    """Cohere shape: logits are multiplied by a scale."""
    return build("cohere", **{"logit_scale": 0.25, **overrides})


def tiny_gpt2(**overrides: Any) -> PreTrainedModel:
    """GPT-2 shape: learned positions, transposed projection weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256,
        bos_token_id=1, eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **overrides,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": tiny_llama,
    "smollm": tiny_smollm,
    "qwen3": tiny_qwen3,
    "mistral": tiny_mistral,
    "gemma2": tiny_gemma2,
    "gemma3": tiny_gemma3,
    "phi3": tiny_phi3,
}
OTHERS: dict[str, Callable[..., PreTrainedModel]] = {
    "granite": tiny_granite,
    "cohere": tiny_cohere,
    "gpt2": tiny_gpt2,
}
