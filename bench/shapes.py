"""The shapes of models that are measured. Weights are random, so nothing has to be downloaded."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder; enough to build one and to count its work."""

    name: str
    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool
    rope_theta: float

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of one decoder layer."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "q_proj": (self.hidden, query),
            "k_proj": (self.hidden, key),
            "v_proj": (self.hidden, key),
            "o_proj": (query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def body(self) -> int:
        """N: weights of all linear layers but the head."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def weights(self) -> int:
        """Weights that are stored: body, embedding, and the head if it is one of its own."""
        return self.body + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter(self, rank: int) -> int:
        """P_A: weights of adapters of this rank on all linear layers."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.linears.values())

    def config(self, max_positions: int) -> dict[str, Any]:
        """What transformers' configuration of this model type takes."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "max_position_embeddings": max_positions,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 1,
        }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", "llama", 2, 32, 4, 2, 8, 64, 512, True, 1e4),
        Shape("tiny-wide", "llama", 2, 32, 4, 2, 8, 64, 49152, True, 1e4),
        Shape("SmolLM2-8-layers", "llama", 8, 576, 9, 3, 64, 1536, 49152, True, 1e5),
        Shape("SmolLM2-135M", "llama", 30, 576, 9, 3, 64, 1536, 49152, True, 1e5),
        Shape("Qwen3-0.6B", "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, True, 1e6),
        Shape("Qwen3-4B", "qwen3", 36, 2560, 32, 8, 128, 9728, 151936, True, 1e6),
        Shape("Llama-3.1-8B", "llama", 32, 4096, 32, 8, 128, 14336, 128256, False, 5e5),
        Shape("Llama-3.1-70B", "llama", 80, 8192, 64, 8, 128, 28672, 128256, False, 5e5),
    )
}
