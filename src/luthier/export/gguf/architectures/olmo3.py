"""OLMo 3: OLMo 2 with a window in three of four layers."""

from typing import Any

from luthier.export.gguf.architectures._common import Facts, decoder, window_pattern

NAME = "olmo2"


def facts(config: Any) -> Facts:
    """With the window and which layers have it."""
    return decoder(config) | {
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": window_pattern(config),
    }
