"""Mistral: Llama's architecture to llama.cpp, which does not compute the window of its first version."""

from typing import Any

from luthier.export.gguf.architectures._common import Facts, decoder, unlimited
from luthier.export.gguf.architectures._common import paired_projections as tensors

NAME = "llama"

__all__ = ["NAME", "facts", "tensors"]


def facts(config: Any) -> Facts:
    """Llama's, and no context beyond the window."""
    return unlimited(config, decoder(config))
