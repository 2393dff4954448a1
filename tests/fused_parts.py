"""Small models of every family that fused layers know, adapters on them, and a batch with a tree in it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from luthier.data.batch import Batch, Example, Segment, collate
from luthier.models.lora import apply_lora
from tiny_models import build

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: build("llama"),
    "llama with biases": lambda: build("llama", attention_bias=True, mlp_bias=True),
    "mistral with a window": lambda: build("mistral", sliding_window=4),
    "qwen2": lambda: build("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": lambda: build("qwen3"),
    "smollm3": lambda: build("smollm3", num_hidden_layers=4),
    "granite": lambda: build(
        "granite", residual_multiplier=0.3, attention_multiplier=0.2, logits_scaling=2.0
    ),
    "gemma": lambda: build("gemma"),
    "gemma2": lambda: build("gemma2", sliding_window=4, query_pre_attn_scalar=8, attn_logit_softcapping=5.0),
    "gemma3": lambda: build("gemma3_text", sliding_window=4, query_pre_attn_scalar=8),
    "phi3": lambda: build("phi3", original_max_position_embeddings=256),
    "olmo2": lambda: build("olmo2"),
    "qwen3 with experts": lambda: build(
        "qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, mlp_only_layers=[0]
    ),
    "mixtral": lambda: build("mixtral", num_local_experts=4),
    "olmo3": lambda: build("olmo3", sliding_window=4, num_hidden_layers=4),
}
DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}


def segment(length: int, parent: int = -1) -> Segment:
    ids = np.random.default_rng(length).integers(0, 97, length).astype(np.int32)
    return Segment(ids, np.ones(length, np.float32), parent)


def forest() -> Batch:
    tree = (segment(6), segment(4, 0), segment(3, 0))
    return collate([Example((segment(9),)), Example(tree), Example((segment(5),))])


def adapted(model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    """With adapters that have been trained a little."""
    apply_lora(model, rank=4, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model
