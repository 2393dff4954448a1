"""Qwen 3 with experts: one tensor for all experts of a layer and each of their three projections."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from luthier.errors import ModelError
from luthier.export.gguf.architectures._common import Facts, decoder, unlimited

NAME = "qwen3moe"


def facts(config: Any) -> Facts:
    """Sizes, and how many experts there are and take part.

    Raises ModelError where llama.cpp computes something else.
    """
    if not config.norm_topk_prob:
        raise ModelError(
            "llama.cpp always makes the weights of the chosen experts of Qwen 3 sum to one, and this model's "
            "norm_topk_prob is false, so it would answer differently there."
        )
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        raise ModelError(
            "llama.cpp expects experts in every layer of Qwen 3, and this model has layers without."
        )
    return unlimited(config, decoder(config)) | {
        "expert_count": config.num_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": config.moe_intermediate_size,
    }


def tensors(config: Any, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The stacked gate and up projections apart; names with `.weight`, which stacked experts lack."""
    if name.endswith("experts.gate_up_proj"):
        base = name.removesuffix("gate_up_proj")
        gate, up = tensor.chunk(2, dim=1)
        yield f"{base}gate_proj.weight", gate
        yield f"{base}up_proj.weight", up
    elif name.endswith("experts.down_proj"):
        yield f"{name}.weight", tensor
    else:
        yield name, tensor
