"""Llama 1 to 3 and SmolLM 1 and 2."""

from luthier.export.gguf.architectures._common import decoder as facts
from luthier.export.gguf.architectures._common import llama3_factors as more
from luthier.export.gguf.architectures._common import paired_projections as tensors

NAME = "llama"

__all__ = ["NAME", "facts", "more", "tensors"]
