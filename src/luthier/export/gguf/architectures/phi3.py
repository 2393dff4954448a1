"""Phi 3 and 4, whose query, key and value are one tensor, as are gate and up."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from luthier.export.gguf.architectures._common import Facts, decoder, head_size, rope_parameters, unlimited

NAME = "phi3"


def facts(config: Any) -> Facts:
    """With the part of a head that rotates and, of long contexts, the factor on attention."""
    parameters = rope_parameters(config)
    original = parameters.get("original_max_position_embeddings") or config.max_position_embeddings
    found = unlimited(config, decoder(config)) | {
        "rope.dimension_count": int(head_size(config) * parameters.get("partial_rotary_factor", 1.0)),
        "rope.scaling.original_context_length": original,
        "attention.sliding_window": 0,
    }
    longer = config.max_position_embeddings / original
    if parameters.get("long_factor") and longer > 1:
        found["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(longer) / math.log(original))
    return found


def more(config: Any) -> Iterator[tuple[str, Tensor]]:
    """Factors of the rotary frequencies for long and for short contexts (rope_type longrope)."""
    parameters = rope_parameters(config)
    for which in ("long", "short"):
        if factors := parameters.get(f"{which}_factor"):
            yield f"rope_factors_{which}.weight", torch.tensor(factors, dtype=torch.float32)
