"""Where Luthier keeps what it can make again: converted models, tokens, downloaded demo weights."""

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A folder in the user's cache (`$XDG_CACHE_HOME/luthier` or `~/.cache/luthier`); safe to delete at any time."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root.joinpath("luthier", *parts)
