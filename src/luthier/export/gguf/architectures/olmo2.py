"""OLMo 2."""

from luthier.export.gguf.architectures._common import decoder as facts

NAME = "olmo2"

__all__ = ["NAME", "facts"]
