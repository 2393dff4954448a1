"""SmolLM 3: Llama whose every fourth layer has no positions."""

from typing import Any

from luthier.errors import ModelError
from luthier.export.gguf.architectures._common import Facts, decoder, unlimited
from luthier.export.gguf.architectures._common import paired_projections as tensors

NAME = "smollm3"
PERIOD = 4

__all__ = ["NAME", "facts", "tensors"]


def facts(config: Any) -> Facts:
    """Llama's.

    Raises ModelError if other layers than every fourth have no positions: llama.cpp knows no other pattern.
    """
    if list(config.no_rope_layers) != [int((i + 1) % PERIOD != 0) for i in range(config.num_hidden_layers)]:
        raise ModelError(
            f"llama.cpp expects every {PERIOD}th layer of SmolLM 3 to have no positions; this model's no_rope_layers "
            "are others, so it would answer differently there."
        )
    return unlimited(config, decoder(config))
