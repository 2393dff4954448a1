"""Qwen 2 and 2.5."""

from typing import Any

from luthier.export.gguf.architectures._common import Facts, decoder, unlimited

NAME = "qwen2"


def facts(config: Any) -> Facts:
    """The usual ones, and no context beyond a window that is in use."""
    return unlimited(config, decoder(config))
